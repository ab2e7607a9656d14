"""The checks of the tables of a collection, before anything is made."""

from collections.abc import Sequence
from typing import Any, TypeVar

from torchrec.modules.embedding_configs import BaseEmbeddingConfig, DataType, PoolingType

from embcomp.settings import IdCount, Width, checked, shown

C = TypeVar("C", bound=BaseEmbeddingConfig)


def checked_tables(tables: Any, kind: type[C]) -> list[C]:
    """Check torchrec's table configurations, and return them as a list.

    Raises:
        TypeError: `tables` is not a sequence of configurations of this kind.
        ValueError: the sequence is empty, or a name, size or type is invalid; the text names the table and the setting.
    """
    what = f"tables must be a sequence of torchrec's {kind.__name__}"
    if not isinstance(tables, Sequence) or isinstance(tables, str | bytes):
        raise TypeError(f"{what}, got {shown(tables)}")
    if not tables:
        raise ValueError(f"{what}, at least one, got {shown(tables)}")
    for number, table in enumerate(tables):
        if not isinstance(table, kind):
            raise TypeError(f"{what}, got {shown(table)} at place {number}")
        _check_table(table, f"tables[{number}]")
    return list(tables)


def _check_table(table: BaseEmbeddingConfig, place: str) -> None:
    name = f"table {checked(table.name, str, f'{place}.name')!r}"
    checked(table.num_embeddings, IdCount, f"{name}: num_embeddings")
    checked(table.embedding_dim, Width, f"{name}: embedding_dim")
    features = table.feature_names
    if not isinstance(features, Sequence) or isinstance(features, str):
        raise ValueError(f"{name}: feature_names must be a list of names, got {shown(features)}")
    for feature in features:
        checked(feature, str, f"{name}: a name in feature_names")
    if not isinstance(table.data_type, DataType):
        raise ValueError(f"{name}: data_type must be a torchrec DataType, got {shown(table.data_type)}")
    pooling = getattr(table, "pooling", PoolingType.SUM)
    if not isinstance(pooling, PoolingType):  # text would pass for a sum
        raise ValueError(f"{name}: pooling must be a torchrec PoolingType, got {shown(pooling)}")
