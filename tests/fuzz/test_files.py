"""Every file that embcomp writes, damaged at random: it loads with the same values, or a clear error names the file.

A number of tries for each kind, by seeds; with EMBCOMP_FUZZ_SECONDS=600 as many as fit into that time.
"""

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
import torch
from torchrec import KeyedJaggedTensor

import data
import embcomp
from embcomp import serving
from embcomp.checkpoints import Checkpoints
from embcomp.graph import ClusterMap, Clusters, Mixture
from embcomp.sdim import SDIM, BehaviorEncoder, BehaviorStore
from embcomp.semantic_ids import ResidualKMeans
from embcomp.semantic_ids import load as load_tokenizer
from embcomp.semantic_ids.tokenizers.resume import Checkpoint
from experiments.training.checkpoint import Best
from tests.fuzz.fuzzing import REFUSED, Tally, record

SECONDS = float(os.environ.get("EMBCOMP_FUZZ_SECONDS", "0"))


class Kind(NamedTuple):
    """How to write an example into an empty folder, and how to read it to the last value; tries in CI."""

    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    tries: int


def cluster_map() -> ClusterMap:
    return ClusterMap.of(torch.arange(40) % 7, 8, 1, side="users", coherence=0.3, clustering="c")


def mixture() -> Mixture:
    rows = torch.randint(7, (20, 2), generator=torch.Generator().manual_seed(0))
    return Mixture.of(rows, torch.tensor([[3.0, 1.0]]).expand(20, 2), cluster_map())


def encoder() -> BehaviorEncoder:
    table = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    return BehaviorEncoder(SDIM(8, 12, seed=1), table, "1")


def model() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Linear(5, 3)


def write_fit(folder: Path) -> None:
    Checkpoint(folder / "fit", {"a": 1}).save({"codebooks": [torch.arange(6.0).view(2, 3)], "epoch": 3})


def write_tokenizer(folder: Path) -> None:
    content = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    ResidualKMeans(2, 8).fit(content).save(folder)


def read_tokenizer(folder: Path) -> Any:
    found = load_tokenizer(folder)
    return found.config(), found.version, found.baseline, dict(sorted(found.tensors.items()))


def read_encoder(folder: Path) -> Any:
    found = BehaviorEncoder.load(folder / "encoder")
    return found.stamp, found(np.arange(30)), found.sdim.settings(), found.num_items


def write_store(folder: Path) -> None:
    generator = np.random.default_rng(0)
    with BehaviorStore(folder, encoder(), max_bytes=2**22) as store:
        for _ in range(4):
            store.append_many({f"user-{i}": generator.integers(0, 30, 1 + i % 9) for i in range(30)})
        store.append("long", generator.integers(0, 30, 900))
        for i in range(20, 30):
            store.forget(f"user-{i}")


def read_store(folder: Path) -> Any:
    users = [*(f"user-{i}" for i in range(30)), "long"]
    with BehaviorStore(folder, encoder(), max_bytes=2**22) as store:
        before = [store.fetch(users), [store.events(user) for user in users]]
        store.append_many({user: [1, 2] for user in users})
        return *before, store.fetch(users), [store.events(user) for user in users]


def write_checkpoint(folder: Path) -> None:
    trained = model()
    optimizer = torch.optim.Adam(trained.parameters())
    trained(torch.ones(5)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3])
    Checkpoints(folder, trained, [optimizer], parts={"s": scheduler, "b": b"note"}).save(3, {"at": (1, 2)})


def read_checkpoint(folder: Path) -> Any:
    loaded = torch.nn.Linear(5, 3)
    optimizer = torch.optim.Adam(loaded.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1])
    found = Checkpoints(folder, loaded, [optimizer], parts={"s": scheduler, "b": b"note"}).load()
    random_numbers = torch.rand(2), random.random(), np.random.default_rng(0)
    return found, loaded.state_dict(), optimizer.state_dict(), scheduler.state_dict(), random_numbers[:2]


def read_best(folder: Path) -> Any:
    loaded = torch.nn.Linear(5, 3)
    Best(folder, "key").load(loaded)
    return loaded.state_dict()


def write_data(folder: Path) -> None:
    rng = np.random.default_rng(0)
    rows = pl.DataFrame({"label": rng.integers(0, 2, 90), "../../evil": rng.integers(0, 9, 90), "x": rng.random(90)})
    rows = rows.with_columns(pl.col("label").cast(pl.String).alias("name"))
    rows.write_parquet(folder / "rows.parquet")
    schema = {"label": "label", "features": {"../../evil": {}, "name": {}}, "dense": ["x"]}
    cache = folder / "cache"
    found = data.load("parquet", folder=folder / "rows.parquet", cache=cache, schema=schema).folder
    for path in found.iterdir():
        path.rename(folder / path.name)
    shutil.rmtree(cache)
    (folder / "rows.parquet").unlink()


def read_data(folder: Path) -> Any:
    clicks = data.ClickData(folder)
    batches = [vars(batch) for split in clicks.splits for batch in clicks.loader(split, 32)]
    words = [clicks.vocabulary(feature.name) for feature in clicks.schema.features]
    return clicks.schema, batches, words, clicks.content("name"), [clicks.num_rows(split) for split in clicks.splits]


def write_program(folder: Path) -> None:
    torch.manual_seed(2)
    embcomp.export(torch.nn.Sequential(torch.nn.Embedding(9, 32)), folder / "model.pt2", (torch.arange(3),))


KINDS = {
    "cluster map": Kind(lambda f: cluster_map().save(f / "map"), lambda f: vars(ClusterMap.load(f / "map")), 100),
    "mixture": Kind(lambda f: mixture().save(f / "mix"), lambda f: vars(Mixture.load(f / "mix")), 100),
    "clusters": Kind(
        lambda f: Clusters(cluster_map(), cluster_map(), 0.5, 1.0).save(f),
        lambda f: [vars(getattr(Clusters.load(f), side)) for side in ("users", "items")],
        100,
    ),
    "tokenizer": Kind(write_tokenizer, read_tokenizer, 100),
    "fit of a tokenizer": Kind(write_fit, lambda f: Checkpoint(f / "fit", {"a": 1}).load(), 100),
    "behavior encoder": Kind(lambda f: encoder().save(f / "encoder"), read_encoder, 100),
    "behavior store": Kind(write_store, read_store, 80),
    "checkpoint": Kind(write_checkpoint, read_checkpoint, 40),
    "prepared data": Kind(write_data, read_data, 60),
    "exported program": Kind(write_program, lambda f: serving.load(f / "model.pt2").module()(torch.arange(9)), 30),
    "best weights": Kind(lambda f: Best(f, "key").save(model()), read_best, 100),
}


def damage(content: bytes, chance: random.Random) -> bytes:
    """Bits flipped, cut, or a stretch of it zeroed or filled with noise."""
    found = bytearray(content)
    at = chance.randrange(len(content))
    length = min(chance.choice([1, 2, 8, 64, 512, 4096]), len(content) - at)
    match chance.choice(["flip", "flip", "flips", "cut", "zero", "noise", "more"]):
        case "flip":
            found[at] ^= 1 << chance.randrange(8)
        case "flips":
            for place in chance.choices(range(len(content)), k=chance.randint(2, 9)):
                found[place] ^= 1 << chance.randrange(8)
        case "cut":
            del found[chance.choice([at, len(content) - length]) :]
        case "zero":
            found[at : at + length] = bytes(length)
        case "noise":
            found[at : at + length] = chance.randbytes(length)
        case "more":
            found += chance.randbytes(length)
    return bytes(found)


def said(value: Any) -> str:
    """All of a value as text; tensors to the last bit."""
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}{value.tolist()}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.tolist()}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {said(held)}' for key, held in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"({', '.join(said(held) for held in value)})"
    if isinstance(value, KeyedJaggedTensor):
        return said([value.keys(), value.values(), value.lengths(), value.weights_or_none()])
    assert " object at 0x" not in repr(value), f"{type(value)} does not say what it holds"
    return repr(value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_right_or_refused_by_name(name: str, tmp_path: Path, record_property: Any) -> None:
    kind, tally = KINDS[name], Tally()
    kind.write(tmp_path)
    whole = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    right = said(kind.read(tmp_path))
    end = time.monotonic() + SECONDS / len(KINDS)
    while tally.total() < kind.tries or time.monotonic() < end:
        seed = f"{name} {tally.total()}"
        chance = random.Random(seed)
        for path, content in whole.items():
            if path.read_bytes() != content:
                path.write_bytes(content)
        file = chance.choices(list(whole), [len(content) for content in whole.values()])[0]
        file.write_bytes(damage(whole[file], chance))
        try:
            found = said(kind.read(tmp_path))
        except (ValueError, OSError) as error:
            text = str(error)
            tally[REFUSED] += 1
        else:
            assert found == right, f"{seed}: {file} was read as something else"
            tally.is_right()
            continue
        assert file.name in text or f"{tmp_path}, " in text, f"{seed}: {file} is not named: {text}"
    record(record_property, "damaged files", tally)
