"""`python -m experiments bench features`: `embcomp.rank_features` against the package `outrank`, on the same rows.

The data are Frappe, MovieLens-1M and the samples of Avazu and Criteo, if `EMBCOMP_DATA` holds them, and synthetic
clicks with planted features: copies with increasing noise, and useless features of many sizes. Rows are shuffled,
because outrank takes the labels of later rows for noise, and values are numbered, because it splits lines at commas.
Runs in one batch use the first `part` rows.

`-o outrank=PYTHON` names an interpreter that has outrank (0.97.5 needs pandas < 3 and xxhash < 4); without it outrank
must be importable here. It is run twice: with all rows in one batch, which is the same estimate as ours, and with its
defaults (every tenth row, batches of 2^14, medians over these). Times are processor seconds of all threads and
processes, after imports. Elapsed time would also count waiting, because its command polls every 4 s whether a batch is
done.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from scipy.stats import spearmanr

import embcomp
from data.readers import avazu, criteo, frappe, ml_1m, synthetic
from experiments.bench import BenchRow
from experiments.errors import InputError

NOISE = (2, 5, 30, 200, 1_000, 10_000, 100_000, 1_000_000)
TIMED = """
import os, outrank.__main__ as command
began = sum(os.times()[:4])
command.main()
print(sum(os.times()[:4]) - began)
"""
READERS = {"frappe_x1": frappe, "ml-1m": ml_1m, "avazu_sample": avazu, "criteo_sample": criteo}


def run(
    console: Console, *, outrank: str = sys.executable, rows: int = 3_000_000, part: int = 100_000, only: str = ""
) -> list[BenchRow]:
    """Return Spearman correlations of the two rankings, and times of outrank over ours.

    Args:
        outrank: an interpreter that has the package.
        rows: the number of synthetic clicks, on which outrank runs with its defaults.
        part: the most rows on which it runs in one batch, whose time grows with values times rows.
        only: one log, by its folder, or "synthetic".
    """
    if subprocess.run([outrank, "-c", "import outrank"], capture_output=True, check=False).returncode:
        raise InputError(f"outrank={outrank}: no such interpreter has the package outrank; `pip install outrank` there")
    results: list[BenchRow] = []
    for name, clicks, whole in _logs(rows, part, only):
        with tempfile.TemporaryDirectory() as folder:
            results += _compared(console, name, clicks, Path(folder), outrank, whole)
    return results


def _logs(rows: int, part: int, only: str) -> Iterator[tuple[str, pl.DataFrame, bool]]:
    """Yield names and rows, and whether they are few enough for one batch."""
    root = Path(os.environ.get("EMBCOMP_DATA", "."))
    for name, reader in READERS.items():
        if only in ("", name) and (root / name).is_dir():
            source = reader.read(root / name)
            columns = [field.name for field in source.fields] + list(source.dense)
            clicks = source.rows.select(*columns, label=pl.col(source.label)).collect()
            clicks = clicks.sample(fraction=1, shuffle=True, seed=0).head(part)
            yield f"{name}, {clicks.height:,} rows", clicks, True
    if only not in ("", "synthetic"):
        return
    clicks = planted(rows)
    yield f"synthetic, {part:,} rows", clicks.head(part), True
    yield f"synthetic, {rows:,} rows", clicks, False


def planted(rows: int, seed: int = 0) -> pl.DataFrame:
    """Make synthetic clicks, with copies of user and item, a share of each replaced at random, and useless features."""
    clicks = synthetic.generate(synthetic.Config(num_rows=rows, seed=seed)).rows
    rng = np.random.default_rng(seed + 1)
    columns = {name: clicks[name].to_numpy() for name in ("user", "item", "device", "hour")}
    for name, size in (("user", 6000), ("item", 4000)):
        for share in (0.2, 0.4, 0.6, 0.8):
            other = rng.integers(size, size=rows)
            columns[f"{name} {share:.0%} noise"] = np.where(rng.random(rows) < share, other, columns[name])
        columns[f"{name} // 20"] = columns[name] // 20
    columns |= {f"noise of {size:,}": rng.integers(size, size=rows) for size in NOISE}
    columns["Zipf noise"] = rng.zipf(1.3, rows)
    return pl.DataFrame(columns | {"label": clicks["label"]}).sample(fraction=1, shuffle=True, seed=seed)


def _compared(
    console: Console, name: str, clicks: pl.DataFrame, folder: Path, python: str, whole: bool
) -> list[BenchRow]:
    names = {column: f"f{at}" for at, column in enumerate(clicks.columns) if column != "label"}
    numbered = clicks.select(*(pl.col(n).rank("dense").fill_null(0).alias(to) for n, to in names.items()), "label")
    (folder / "csv").mkdir()
    numbered.write_csv(folder / "csv" / "data.csv")
    numbered.write_parquet(folder / "clicks.parquet")
    seconds, rankings = [], []
    for _ in range(3):
        began = time.process_time()
        rankings.append(embcomp.rank_features(folder / "clicks.parquet"))
        seconds.append(time.process_time() - began)
    ranking = rankings[-1]
    telling = {score.feature for score in ranking.features if not (score.useless or score.even)}
    useful = [column for column, to in names.items() if to in telling]
    console.log(f"{name}: {len(names)} features; {np.median(seconds):.2f} s of the processor; useful: {useful}")
    rows = []
    ways = {"one batch": ["--subsampling", "1", "--minibatch_size", str(clicks.height)], "its defaults": []}
    for way, options in ways.items():
        if way == "one batch" and not whole:
            continue
        out = folder / way
        command = [python, "-c", TIMED, "--task", "ranking", "--data_source", "csv-raw", "--data_path", "csv"]
        command += ["--output_folder", str(out), "--num_threads", str(os.cpu_count()), "--disable_tqdm", "True"]
        command += ["--include_cardinality_in_feature_names", "False", *options]
        taken = _seconds(command, folder)
        theirs = _scores(out / "pairwise_ranks.tsv")
        console.log(f"{name}: outrank, {way}: {taken:.1f} s of the processor")
        ours = f"rank_features, {name}"
        ratios = sorted(taken / each for each in seconds)
        rows.append(BenchRow(f"outrank, {way}, processor time", ratios[1], ratios[0], ratios[2], ours))
        for what, some in (("all", [*names]), ("useful", useful)):
            if len(some) > 2:
                ours_of, theirs_of = ([scores[names[column]] for column in some] for scores in (ranking.scores, theirs))
                correlation: Any = spearmanr(ours_of, theirs_of)
                rho = float(correlation.statistic)
                rows.append(
                    BenchRow(f"Spearman, {len(some)} features ({what})", rho, rho, rho, f"outrank, {way}, {name}")
                )
        for column, to in names.items():
            console.log(f"  {column}: {ranking.scores[to]:.6f} bits, outrank {theirs[to] / np.log(2):.6f}")
    return rows


def _seconds(command: list[str], folder: Path) -> float:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{command[0]}: outrank failed: {done.stderr.strip().splitlines()[-1:]}")
    return float(done.stdout.split()[-1])


def _scores(path: Path) -> dict[str, float]:
    """Return nats by feature."""
    with path.open() as file:
        lines = [row for row in csv.DictReader(file, delimiter="\t") if row["FeatureB"] == "label"]
    return {row["FeatureA"]: float(row["Score"]) for row in lines}
