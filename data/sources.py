"""The addresses of the published data sets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Archive:
    """A published archive.

    Attributes:
        url: the address of a .zip or .tar.gz file.
        members: the files to unpack from it, with their checksum ("md5:..." or "sha256:..."), or None if none is
            published.
        checksum: the checksum of the archive, or None if only its members have one.
        terms: the terms of the publisher for those who use the data.
        accept: True if the publisher requires these terms to be accepted before the download.
    """

    url: str
    members: dict[str, str | None]
    checksum: str | None
    terms: str
    accept: bool = False


# A string says what to do where a program cannot; {folder} is where the files belong.
SOURCES: dict[str, Archive | str] = {
    "ml-1m": Archive(
        url="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
        members=dict.fromkeys(("ratings.dat", "users.dat", "movies.dat", "README")),
        checksum="md5:c4d9eecfca2ab87c1945afe126590906",
        terms="for research, not to be passed on; cite Harper and Konstan 2015 (see its README)",
    ),
    "frappe": Archive(
        url="https://huggingface.co/datasets/reczoo/Frappe_x1/resolve/main/Frappe_x1.zip",
        members={
            "train.csv": "md5:ba7306e6c4fc19dd2cd84f2f0596d158",
            "valid.csv": "md5:88d51bf2173505436d3a8f78f2a59da8",
            "test.csv": "md5:3470f6d32713dc5f7715f198ca7c612a",
        },
        checksum=None,
        terms="for research, not to be passed on; cite Baltrunas et al. 2015",
    ),
    "criteo": Archive(
        url="https://go.criteo.net/criteo-research-kaggle-display-advertising-challenge-dataset.tar.gz",
        members={"train.txt": None},
        checksum="md5:df9b1b3766d9ff91d5ca3eb3d23bed27",
        terms="Criteo's terms for the Kaggle Display Advertising Challenge data, https://ailab.criteo.com/ressources/; "
        "4.6 GB, 16 GB while it is unpacked",
        accept=True,
    ),
    "avazu": "Avazu is on Kaggle, behind a login. Accept the rules at "
    "https://www.kaggle.com/c/avazu-ctr-prediction/data, download train.gz there and unpack it to {folder}/train.csv",
    "kdd12": "The data of KDD Cup 2012, track 2, are on Kaggle, behind a login. Accept the rules at "
    "https://www.kaggle.com/c/kddcup2012-track2/data, and put training.txt and, for the gender and age of users, "
    "userid_profile.txt into {folder}",
    "globo": "Globo's clicks are on Kaggle, behind a login: "
    "https://www.kaggle.com/datasets/gspmoreira/news-portal-user-interactions-by-globocom. Write the files of clicks/ "
    "as {folder}/clicks.parquet, articles_metadata.csv as {folder}/articles.parquet, and {folder}/"
    "article_embeddings.npz with the arrays article_id and embedding; the figures here are of the 4,097 articles whose "
    "vectors are in artdeoich/content-recommendation and GuillaumeC96/P10_reco_my_content on GitHub",
    "gowalla": "Gowalla is published as text files of one user a line, and its validation split apart from the others. "
    "Write {folder}/interactions.parquet with the columns user_id, item_id and split (train, valid, test) from "
    "data/gowalla of https://github.com/geon0325/LightGCNpp",
    "beauty": "Beauty is published as files of torch tensors. Write {folder}/interactions.parquet with the columns "
    "user_id, item_id and split (train, valid, test) from code/datasets/Beauty-processed of "
    "https://github.com/HKBU-LAGAS/BACO",
}
