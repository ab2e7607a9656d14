"""The names that a method of your own imports, in one stable module (docs/add-a-method.md).

Names are only ever added here. The methods of embcomp itself import the modules behind it.
"""

from embcomp.codecs.base import CODINGS, Codec, Coded, Coding, weighed
from embcomp.initial_rows import Moments
from embcomp.methods.around import Around, settings_around
from embcomp.methods.base import (
    FLOAT_BYTES,
    KEY_BYTES,
    METHODS,
    Budget,
    Chunk,
    Combiner,
    Concat,
    Count,
    Encoder,
    Ladder,
    Method,
    Plan,
    Product,
    Rows,
    Sizes,
    Store,
    Sum,
    Table,
    TablePlan,
    Tables,
    WeightedSum,
    check_counts,
    check_rows,
    config_around,
    per_table,
    side_store,
)
from embcomp.methods.budget import BudgetTooSmall, largest_within, share_rows
from embcomp.methods.hashing import HashEncoder
from embcomp.methods.together import Parts
from embcomp.ops.hashing import hash_key, hash_rows
from embcomp.settings import Bytes, IdCount, ReadCount, RowCount, Share, Width, Within

__all__ = [
    "CODINGS",
    "FLOAT_BYTES",
    "KEY_BYTES",
    "METHODS",
    "Around",
    "Budget",
    "BudgetTooSmall",
    "Bytes",
    "Chunk",
    "Codec",
    "Coded",
    "Coding",
    "Combiner",
    "Concat",
    "Count",
    "Encoder",
    "HashEncoder",
    "IdCount",
    "Ladder",
    "Method",
    "Moments",
    "Parts",
    "Plan",
    "Product",
    "ReadCount",
    "RowCount",
    "Rows",
    "Share",
    "Sizes",
    "Store",
    "Sum",
    "Table",
    "TablePlan",
    "Tables",
    "WeightedSum",
    "Width",
    "Within",
    "check_counts",
    "check_rows",
    "config_around",
    "hash_key",
    "hash_rows",
    "largest_within",
    "per_table",
    "settings_around",
    "share_rows",
    "side_store",
    "weighed",
]
