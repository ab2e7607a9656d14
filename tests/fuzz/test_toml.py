"""Experiments and schemas with random changes: accepted as what they say, or refused by name. Never anything else.

Some seconds by default; EMBCOMP_FUZZ_SECONDS=3600 tries for an hour, from seeds that go on.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import random
import time
import tomllib
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

from data import DataError
from data.ids import Field
from data.readers import parquet
from experiments.config import RunConfig
from experiments.errors import InputError
from experiments.load import load
from tests.fuzz.fuzzing import REFUSED, RIGHT, Tally, record

TRIES = 100  # of each base
AREA = "experiments and schemas (TOML)"
SECONDS = float(os.environ.get("EMBCOMP_FUZZ_SECONDS", "0"))

CLICKS: dict[str, Any] = {
    "description": "clicks",
    "seeds": [0, 1],
    "data": {"name": "synthetic", "options": {"num_rows": 6000, "drift": 0.1, "tags": False, "split": "time"}},
    "model": {
        "name": "DCNv2",
        "embedding_dim": 8,
        "init_normal": 0.01,
        "options": {"cross_layers": 1, "hidden": [16], "dropout": 0.1, "batch_norm": True, "activation": "relu"},
    },
    "optimizer": {"name": "Adam", "lr": 0.01, "embedding": "Adagrad", "embedding_lr": 0.05, "max_grad_norm": 1.0},
    "training": {"batch_size": 256, "epochs": 2, "patience": 2, "min_delta": 1e-6, "lr_factor": 0.5},
    "graph": {"user": "user", "item": "item"},
    "slices": {"rare": {"feature": "item", "min_count": 1, "max_count": 5}},
    "methods": [
        {"method": "Full"},
        {"method": "HashingTrick", "share": [0.5, 0.1], "options": {"balanced": True, "seed": 3}},
        {"method": "MultiHash", "rows": 30, "options": {"num_hashes": 2, "combine": "concat"}, "label": "two"},
        {"method": "FrequencyHash", "nbytes": 2000, "seeds": [0], "options": {"hot_share": 0.3}},
        {
            "method": "LowBit",
            "share": 0.1,
            "label": "few bits",
            "options": {"bits": 4, "of": {"method": "UnifiedEmbedding", "chunk_dim": 4, "balanced": True}},
        },
        {
            "method": "SemanticIds",
            "table": "item",
            "rows": 40,
            "label": "ids",
            "options": {
                "codes": {"tokenizer": "ResidualKMeans", "levels": 3, "codebook_size": 8, "seed": 1},
                "pieces": {"kind": "PrefixNgram", "n": 2, "unigrams": True},
                "neighbours": {"k": 5, "temperature": 0.2},
                "piece_dropout": 0.1,
                "min_support": 2,
            },
        },
    ],
}
RETRIEVAL: dict[str, Any] = {
    "data": {"name": "synthetic", "options": {"num_rows": 6000}},
    "model": [
        {"name": "LightGCN", "embedding_dim": 8, "options": {"num_layers": 2}},
        {"name": "MF", "embedding_dim": 8},
    ],
    "optimizer": {"lr": 0.01, "embedding_weight_decay": 1e-6},
    "training": {"batch_size": 256, "epochs": 2, "monitor": "valid/recall@20"},
    "retrieval": {"loss": "bpr", "gamma": 1.0, "validate_every": 2, "cold": {"share": 0.1, "first": [1, 3], "k": 1}},
    "methods": [{"method": "Full"}, {"method": "GraphHash", "share": 0.5, "options": {"objective": "modularity"}}],
}
BEHAVIOR: dict[str, Any] = {
    "data": {"name": "synthetic", "options": {"num_rows": 6000}},
    "model": {"name": "BehaviorModel", "embedding_dim": 8, "options": {"hidden": [16]}},
    "training": {"batch_size": 16, "epochs": 1},
    "behavior": {
        "task": "like",
        "length": 64,
        "request": 2,
        "poolings": [
            {"pooling": "din", "options": {"last": 50}, "label": "DIN"},
            {"pooling": "sdim", "options": {"rule": "kernel", "num_hashes": 12, "hash_width": 3}, "seeds": [0]},
        ],
    },
    "slices": {"long": {"feature": "history", "min_count": 20}},
    "methods": [{"method": "Full"}],
}
BASES = {"clicks": CLICKS, "retrieval": RETRIEVAL, "behavior": BEHAVIOR}
SCHEMA: dict[str, Any] = {
    "label": "click",
    "group": "user",
    "columns": ["hour"],
    "split": "random",
    "seed": 1,
    "dense": {"price": {"fill": 0.5}, "age": {}},
    "features": {"user": {"min_count": 2}, "tags": {"multi_hot": True, "ids": 9}, "hour": {"of": "at", "part": "hour"}},
}
JUNK = [
    math.inf, -math.inf, math.nan, True, False, 0, -1, 1, 3.5, -0.0, 1e308, 5e-324, 2**63, -(2**63) - 1, 10**40, 2**40,
    "", "x", "item", "../../evil", "é" * 200, "Full", "run", "inf", [], [1], [[]], [math.nan], [True],
    ["x", 1], {}, {"a": 1}, date(2026, 11, 1), datetime(2026, 11, 1),
]  # fmt: skip


def rounds(tries: int) -> Iterator[random.Random]:
    """A generator for each try: a fixed number of them, or as many as there is time for."""
    start, number = time.monotonic(), 0
    while number < tries or time.monotonic() - start < SECONDS:
        yield random.Random(number)
        number += 1


def places(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value, containers included."""
    if path:
        yield path
    entries = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in entries:
        yield from places(value, (*path, key))


def at(values: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


def changed(base: dict[str, Any], draw: random.Random) -> tuple[dict[str, Any], tuple[Any, ...], Any, Any]:
    """A copy with one value changed, gone or added: (copy, path, old value, new value)."""
    values = copy.deepcopy(base)
    path = draw.choice(list(places(values)))
    holder, old = at(values, path[:-1]), at(base, path)
    kind = draw.random()
    if kind < 0.1:
        del holder[path[-1]]
        return values, path, old, None
    new = copy.deepcopy(draw.choice([*JUNK, old]) if kind < 0.9 else draw.choice([at(base, p) for p in places(base)]))
    if kind < 0.15 and isinstance(holder, dict):
        path = (*path[:-1], draw.choice(["new", "a.b", "rows", "seed", "options", path[-1] + "s"]))
        old = holder.get(path[-1])
    holder[path[-1]] = new
    return values, path, old, new


def to_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {to_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, int | float) else value.isoformat()


def document(values: dict[str, Any]) -> str:
    text = "".join(f"{json.dumps(str(key))} = {to_toml(value)}\n" for key, value in values.items())
    assert json.dumps(tomllib.loads(text), default=str) == json.dumps(values, default=str)
    return text


def must_be_refused(old: Any, new: Any, path: tuple[Any, ...]) -> bool:
    """Changes that no reading makes right, whatever the program says of them."""
    numbers = [part for part in (new if isinstance(new, list) else [new]) if isinstance(part, int | float)]
    if any(isinstance(part, float) and not math.isfinite(part) for part in numbers):
        return True
    if isinstance(new, date) or any(not -(2**63) <= part < 2**63 for part in numbers if isinstance(part, int)):
        return True
    was_number = isinstance(old, int | float) and not isinstance(old, bool)
    swept = path[0] == "optimizer" or path[-1] in ("share", "rows", "nbytes", "seeds", "first")
    if was_number and isinstance(new, list):
        return not (swept and new)
    if was_number and any(isinstance(part, bool) for part in numbers):
        return True
    return isinstance(old, bool) and bool(numbers) and not any(isinstance(part, bool) for part in numbers)


def check_runs(runs: list[RunConfig]) -> None:
    """What is accepted is fit to run: every number one, every name a file's, every run another."""
    for run in runs:
        json.dumps(run.to_dict(), allow_nan=False)
        assert len(run.name.encode()) <= 230
        assert "/" not in run.name
        for section in (run.model, run.optimizer, run.training):
            for field in dataclasses.fields(section):
                value = getattr(section, field.name)
                if isinstance(value, bool):
                    assert field.type in (bool, "bool"), (field.name, value)
    assert len({run.name for run in runs}) == len(runs) > 0


@pytest.mark.parametrize("base", BASES)
def test_an_experiment_is_accepted_or_refused_by_name(base: str, tmp_path: Path, record_property: Any) -> None:
    path = tmp_path / "some.toml"
    path.write_text(document(BASES[base]))
    check_runs(list(load(path).runs()))
    tally = Tally()
    for draw in rounds(TRIES):
        values, place, old, new = changed(BASES[base], draw)
        path.write_text(document(values))
        try:
            runs = list(load(path).runs())
        except InputError as error:
            tally[REFUSED] += 1
            said = str(error)
        else:
            said = ""
        if said:
            assert said.startswith(f"{path}: "), said
            continue
        assert not must_be_refused(old, new, place), (place, old, new)
        check_runs(runs)
        tally.is_right()
    assert min(tally[RIGHT], tally[REFUSED]) > 5
    record(record_property, AREA, tally)


def test_a_damaged_file_is_refused_by_name(tmp_path: Path, record_property: Any) -> None:
    """Characters changed, cut and doubled; deep nesting."""
    path, whole, tally = tmp_path / "some.toml", document(CLICKS).encode(), Tally()
    for draw in rounds(TRIES):
        text = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(text))
            text[place : place + draw.randint(0, 3)] = draw.choice(
                [b"", b"\x00", b"\xff", b"[", b'"', b"=", b"\n", b"1"]
            )
        path.write_bytes(text)
        try:
            check_runs(list(load(path).runs()))
        except InputError as error:
            said = str(error)
            tally[REFUSED] += 1
        else:
            said = f"{path}: "
            tally.is_right()
        assert said.startswith(f"{path}: "), said
    record(record_property, AREA, tally)
    for deep in ("a = " + "[" * 100_000, "a = " + "{b=" * 20_000 + "1" + "}" * 20_000):
        path.write_text(deep)
        with pytest.raises(InputError, match=r"some\.toml: "):
            load(path)


def test_a_schema_is_accepted_or_refused_by_name(tmp_path: Path, record_property: Any) -> None:
    path = tmp_path / "schema.toml"
    tally = Tally()
    for draw in rounds(TRIES):
        values, place, old, new = changed(SCHEMA, draw)
        path.write_text(document(values))
        try:
            found = parquet.resolve({"schema": path})["schema"]
            for name, settings in found["features"].items():
                parquet.Rule.read(f"features.{name}", name, settings)
                assert isinstance(parquet._field(name, settings), Field)
            for name, settings in parquet._dense(found).items():
                parquet.Rule.read(f"dense.{name}", name, settings)
        except DataError:
            tally[REFUSED] += 1
            continue
        assert not must_be_refused(old, new, place), (place, old, new)
        json.dumps(found, allow_nan=False)
        tally.is_right()
    assert min(tally[RIGHT], tally[REFUSED]) > 5
    record(record_property, AREA, tally)
