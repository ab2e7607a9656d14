"""A table of a compressed collection as a place whose map `embcomp.graph.remap_` exchanges."""

import dataclasses
from typing import Any

from torch import nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from embcomp.graph.remapping import Place
from embcomp.torchrec.fused import FusedTables
from embcomp.torchrec.integers import IntegerTables


def place_of(collection: nn.Module, table: str | None) -> Place:
    """The rows of a table, with the state of its fused optimizer.

    Raises:
        ValueError: no such table, or a sharded collection.
    """
    found: Any = collection
    outputs = {output.plan.table.name: output for output in found.assemble.outputs}
    if table not in outputs:
        raise ValueError(f"table={table!r}: name one of the collection's tables, {list(outputs)}")
    output = outputs[table]
    inner, store = found.branches[output.reads[0].branch].collection, output.plan.chunks[0].store
    if isinstance(inner, IntegerTables):
        raise ValueError(
            f"table {table!r}: rows without a float copy (copy='none') cannot take another map, which would average "
            "them; take copy='float'"
        )
    if not isinstance(inner, EmbeddingBagCollection | EmbeddingCollection | FusedTables):
        raise ValueError(
            f"table {table!r} is sharded or quantised ({type(inner).__name__}): load its state into the collection as "
            "it was before, call remap_ there, and shard or quantise again"
        )
    held = inner.embeddings if hasattr(inner, "embeddings") else inner.embedding_bags
    states = []
    if isinstance(inner, FusedTables) and inner.engine.states:
        states = [inner.engine.states[inner.names.index(store)]]
    encoder = output.plan.encoder

    def resized() -> None:
        found.assemble.outputs = tuple(
            dataclasses.replace(o, plan=dataclasses.replace(o.plan, table=encoder.table))
            if o.plan.encoder is encoder
            else o
            for o in found.assemble.outputs
        )
        ids = encoder.table.num_embeddings
        if ids is not None:
            found._tables = [
                dataclasses.replace(config, num_embeddings=ids) if config.name == table else config
                for config in found._tables
            ]

    return Place(encoder, held[store].weight, states, resized)  # pyright: ignore
