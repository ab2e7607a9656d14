"""KDD Cup 2012, track 2: `training.txt`, 149,639,105 rows of advertisements beside the results of soso.com.

Each line holds, between tabs, the clicks and impressions of one advertisement in the sessions of one user with one
query at one place, and ten ids. A row is a line, and its label says whether there was a click at all. The display URL
is a hash of 64 bits, Depth the number of advertisements of a session, Position the place among them; UserID 0 stands
for users who are not known. Values seen fewer than 10 times in train share the out-of-vocabulary id, as in AutoInt
(Song et al. 2019, arXiv 1810.11921).

`userid_profile.txt` gives users a gender (1 male, 2 female, 0 unknown) and one of six ages; it is optional.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from data.ids import Field
from data.schema import DataError
from data.source import Source
from data.splits import with_split
from data.text import count_rows, scan_delimited, text_file

_LARGE = ("DisplayURL", "AdID", "AdvertiserID", "QueryID", "KeywordID", "TitleID", "DescriptionID", "UserID")
_SMALL = ("Depth", "Position")
_PROFILE = ("Gender", "Age")
FEATURES = ("DisplayURL", "AdID", "AdvertiserID", *_SMALL, *_LARGE[3:])
COLUMNS = {"Click": pl.Int32, "Impression": pl.Int32, **dict.fromkeys(FEATURES, pl.String)}


def files(folder: Path) -> list[Path]:
    """Return `training.txt`, and the profiles of users if they are there."""
    profile = text_file(folder, "userid_profile.txt")
    return [text_file(folder, "training.txt"), *([profile] if profile.is_file() else [])]


def read(folder: Path, *, profile: bool = False, seed: int = 0, ids: str = "vocabulary", min_count: int = 10) -> Source:
    """Read `training.txt` (the published test file has no clicks), split at random, 80/10/10: it has no times.

    Args:
        profile: True to add the gender and age of users, from `userid_profile.txt`.
        seed: the seed of the split.
        ids: "vocabulary" of the train split, or "raw" for hashes of the strings; Depth, Position, Gender and Age have
            vocabularies of all rows either way.
        min_count: the least number of occurrences for a vocabulary id.
    """
    if ids not in ("vocabulary", "raw"):
        raise DataError(f"ids must be 'vocabulary' or 'raw', not {ids!r}")
    path, *profiles = files(folder)
    rows = scan_delimited(path, "\t", COLUMNS).with_columns(label=(pl.col("Click") > 0).cast(pl.Int8))
    rows = with_split(rows.drop("Click", "Impression"), count_rows(path), "random", seed)
    if profile:
        if not profiles:
            raise DataError(f"no file {folder / 'userid_profile.txt'}; leave out profile=True, or fetch it")
        users = scan_delimited(profiles[0], "\t", dict.fromkeys(("UserID", *_PROFILE), pl.String))
        rows = rows.join(users.unique("UserID", keep="first"), on="UserID", how="left", maintain_order="left")
    kind = "raw" if ids == "raw" else "train"
    small = [*_SMALL, *(_PROFILE if profile else ())]
    fields = [Field(name, kind, 1 if ids == "raw" else min_count) for name in _LARGE]
    fields += [Field(name, "all") for name in small]
    return Source(rows, tuple(fields), label="label")
