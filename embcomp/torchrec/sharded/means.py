"""Mean pooling of collections that are split over processes by rows.

torchrec adds up the parts of a row-wise table and divides afterwards. It takes the divisors, the numbers of ids, by the
order of features, not by their names, and divides table-wise tables again (1.8.0): a collection with both shardings or
both poolings returns wrong vectors, without an error.
"""

from typing import Any

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionContext, ShardedEmbeddingBagCollection
from torchrec.distributed.types import ShardingType
from torchrec.modules.embedding_configs import PoolingType
from torchrec.modules.embedding_modules import get_embedding_names_by_table

_BY_ROWS = {ShardingType.ROW_WISE.value, ShardingType.TABLE_ROW_WISE.value}


class ShardedBags(ShardedEmbeddingBagCollection):
    """A sharded collection whose row-wise means are divided by the number of ids of their own feature."""

    divides_by_name = True

    def input_dist(self, ctx: EmbeddingBagCollectionContext, features: Any) -> Any:
        if not isinstance(features, KeyedJaggedTensor) or features.variable_stride_per_key():
            raise ValueError(
                f"a sharded collection with means, of tables {self._table_names}, takes a KeyedJaggedTensor with one "
                "batch size for all features; pool by sum, or leave row_wise out"
            )
        awaitable = super().input_dist(ctx, features)
        ctx.divisor = self._divisor(features)
        return awaitable

    @torch.no_grad()
    def _divisor(self, features: KeyedJaggedTensor) -> Tensor:
        """Return the divisor of each column of the result, float32 [B, columns]."""
        lengths = features.lengths().view(len(features.keys()), -1)
        row = {key: number for number, key in enumerate(features.keys())}
        ones, columns = torch.ones_like(lengths[0]), {}
        names = get_embedding_names_by_table(self._embedding_bag_configs)
        for config, own in zip(self._embedding_bag_configs, names, strict=True):
            by_rows = self.module_sharding_plan[config.name].sharding_type in _BY_ROWS  # pyright: ignore
            for feature, name in zip(config.feature_names, own, strict=True):
                divided = by_rows and config.pooling == PoolingType.MEAN
                columns[name] = lengths[row[feature]] if divided else ones
        divisor = torch.stack([columns[name] for name in self._embedding_names], 1).clamp(min=1).float()
        dims = torch.tensor(self._embedding_dims, device=divisor.device)
        return divisor.repeat_interleave(dims, 1, output_size=sum(self._embedding_dims))
