"""The examples that differ in a part, for slow tests of what hands them on: processes, shards, checkpoints."""

from collections.abc import Hashable

from embcomp.methods import Table
from embcomp.testing.example import Example
from embcomp.testing.examples import EXAMPLES


def parts(example: Example) -> Hashable:
    """The encoder, the combiner, the codings of the stores, and the reads of a plan."""
    tables = [Table("films", 40, 8)]
    plan = example.make(tables).plan(tables)
    (table,) = plan.tables
    codings = frozenset(type(store.coding) for store in plan.stores.values())
    reads = tuple((chunk.lookups > 1, chunk.weighted) for chunk in table.chunks)
    return type(table.encoder), type(table.combiner), codings, reads


PARTS = list({parts(example): example for example in reversed(EXAMPLES)}.values())[::-1]
"""The first example of each combination of parts; the others differ in settings that their encoder alone reads."""
