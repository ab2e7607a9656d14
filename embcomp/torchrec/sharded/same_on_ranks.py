"""The facts that must be the same on every rank; they are compared before anything changes."""

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

import embcomp
from embcomp.extra_state import from_state
from embcomp.holders import holders
from embcomp.methods.base import Encoder, plain
from embcomp.ranks import Ranks
from embcomp.sdim.sdim import SDIM
from embcomp.torchrec.collection.encoder import KeyedEncoder
from embcomp.torchrec.holders import CollectionHolder

Facts = dict[tuple[str, str], str]
"""The value of each (part of the model, property); maps are represented by checksums."""

_MOST = 5  # differences that a message lists
_REMEDIES = {
    "map": "make the map once, save it, and load the same file on every rank",
    "configuration": "give every rank the same method with the same settings",
    "version": "install the same versions on every rank",
    "setting": "pass the same arguments on every rank",
    "": "build the same model on every rank, from the same code and configuration",
}


def facts_of(model: nn.Module, settings: Mapping[str, Any]) -> Facts:
    """Return the facts of a model: versions, settings, tables, maps, shapes. Values of weights are not included."""
    facts: Facts = {("the program", f"version of {name}"): value for name, value in _versions().items()}
    facts |= {("the call", f"setting {name}"): str(value) for name, value in settings.items()}
    for path, module in model.named_modules():
        if isinstance(module, Encoder):
            facts |= _encoder_facts(path, module)
        elif isinstance(module, SDIM):
            said = module.settings()
            facts |= {(f"SDIM {path!r}", f"configuration {key!r}"): str(value) for key, value in said.items()}
        elif isinstance(module, KeyedEncoder):
            facts[f"collection {path!r}", "look-ups"] = str(module.reads)
    for holder in holders(model, opened=lambda holder: not isinstance(holder, CollectionHolder)):
        for config in holder.configs if isinstance(holder, CollectionHolder) else ():
            kept = ("num_embeddings", "embedding_dim", "data_type", "feature_names", "pooling")
            said = {name: str(getattr(config, name, None)) for name in kept}
            facts[f"table {config.name!r} in {holder.paths[0]!r}", "shape"] = str(said)
    for name, parameter in model.named_parameters():
        memory = "without memory" if parameter.is_meta else "with values"
        trained = "trained" if parameter.requires_grad else "frozen"
        facts[f"parameter {name!r}", "shape"] = f"{list(parameter.shape)} {parameter.dtype}, {trained}, {memory}"
    return facts


def check_same(ranks: Ranks, mine: Facts) -> None:
    """Compare the facts of all ranks with those of rank 0.

    Raises:
        ValueError: they differ; raised on every rank, naming the rank, the table, both values and the remedy.
    """
    first, *others = ranks.gather(lambda: mine)
    said = [text for rank, facts in enumerate(others, 1) if facts != first for text in _differences(first, facts, rank)]
    if said:
        more = f"\nand {len(said) - _MOST} more" if len(said) > _MOST else ""
        raise ValueError("the ranks would train different models:\n" + "\n".join(said[:_MOST]) + more)


def _versions() -> dict[str, str]:
    return {"embcomp": embcomp.__version__, "torch": str(torch.__version__), "torchrec": version("torchrec")}


def _encoder_facts(path: str, encoder: Encoder) -> Facts:
    table = f"table {encoder.table.name!r} in {path!r}"
    config = from_state(encoder.get_extra_state(), encoder.table.name)
    facts = {(table, f"configuration {key!r}"): str(value) for key, value in config.items()}
    facts |= {(table, f"map {name!r}"): plain(buffer) for name, buffer in encoder.named_buffers()}
    return facts


def _differences(first: Facts, other: Facts, rank: int) -> Iterator[str]:
    for subject, part in dict.fromkeys([*first, *other]):
        values = [facts.get((subject, part)) for facts in (first, other)]
        if values[0] != values[1]:
            here, there = ("nothing" if value is None else value for value in values)
            remedy = next(text for kind, text in _REMEDIES.items() if part.startswith(kind))
            yield f"{subject}, {part}: rank {rank} has {there}, rank 0 has {here}; {remedy}"
