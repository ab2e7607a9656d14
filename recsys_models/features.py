"""The inputs of every model: dense columns and embedded features, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torchrec import KeyedJaggedTensor, KeyedTensor

Embeddings: TypeAlias = "Callable[[KeyedJaggedTensor], KeyedTensor]"
"""An embedding collection: torchrec's, embcomp's, a sharded one, or any callable with the same types."""

Dims: TypeAlias = int | Sequence[int] | Mapping[str, int]
"""The widths of the embedded features: one for all, one per feature in order, or a mapping by feature name."""


class Inputs(nn.Module):
    """A module that checks the dense columns and puts the embedded features into a fixed order.

    Sharded collections return their keys in another order, so features are addressed by key. It is a separate module
    because torchrec's training pipelines trace a model with torch.fx, which treats a submodule as one step.

    Args:
        feature_names: the keys to read from the KeyedTensor, in the order in which the model sees them.
        dims: the widths of the features.
        num_dense: the number of dense columns, possibly 0.

    Raises:
        ValueError: there is no feature, feature_names is a string, a feature is named twice or has no width, or a width
            is below 1.

    Shapes: dense float `[B, num_dense]`, embedded KeyedTensor -> dense as it was, features `[B, sum(dims)]`.

    Example:
        >>> import torch
        >>> from torchrec import KeyedTensor
        >>> inputs = Inputs(["user", "item"], dims=2, num_dense=1)
        >>> embedded = KeyedTensor(["item", "user"], [2, 2], torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        >>> inputs(torch.zeros(1, 1), embedded)[1]
        tensor([[3., 4., 1., 2.]])
    """

    def __init__(self, feature_names: Sequence[str], dims: Dims, num_dense: int) -> None:
        super().__init__()
        if isinstance(feature_names, str):  # its characters would be features
            raise ValueError(f"feature_names is {feature_names!r}: give a list, [{feature_names!r}]")
        self.feature_names = list(feature_names)
        if not self.feature_names:
            raise ValueError("feature_names is empty: a model needs at least one embedded feature")
        if twice := [name for i, name in enumerate(self.feature_names) if name in self.feature_names[:i]]:
            raise ValueError(f"feature_names holds {twice[0]!r} twice: name each feature once")
        if num_dense < 0:
            raise ValueError(f"num_dense is {num_dense}: give the number of dense columns, or 0 for none")
        self.dims = _dims_per_feature(self.feature_names, dims)
        self.num_dense = num_dense

    @property
    def width(self) -> int:
        """The number of columns of all features together, `sum(dims)`."""
        return sum(self.dims)

    def equal_dim(self, model: str) -> int:
        """Return the one width that all features have.

        Raises:
            ValueError: two features differ in width; the text names the model and the features.
        """
        for name, dim in zip(self.feature_names, self.dims, strict=True):
            if dim != self.dims[0]:
                raise ValueError(
                    f"{model} needs features of equal width, but {name!r} has {dim} and {self.feature_names[0]!r} has "
                    f"{self.dims[0]}: choose one embedding_dim, or DCN, DCNv2 or WideDeep, which take mixed widths"
                )
        return self.dims[0]

    def forward(self, dense: Tensor, embedded: KeyedTensor) -> tuple[Tensor, Tensor]:
        """Check and order the inputs, see the class.

        Raises:
            ValueError: `dense` has another number of columns, or a feature is missing or has another width than `dims`.
        """
        if dense.dim() != 2 or dense.shape[1] != self.num_dense:
            raise ValueError(
                f"dense has shape {tuple(dense.shape)}, but the model was built with num_dense={self.num_dense}: "
                f"pass [B, {self.num_dense}]"
            )
        keys, widths = list(embedded.keys()), list(embedded.length_per_key())
        if keys == self.feature_names and widths == self.dims:
            return dense, embedded.values()
        width_of = dict(zip(keys, widths, strict=True))
        for name, dim in zip(self.feature_names, self.dims, strict=True):
            if name not in width_of:
                raise ValueError(f"feature {name!r} is not among the embedded features {keys}: add a table for it")
            if width_of[name] != dim:
                raise ValueError(
                    f"feature {name!r} has width {width_of[name]}, but the model was built for {dim}: "
                    f"give dims={{{name!r}: {width_of[name]}, ...}}"
                )
        columns = embedded.to_dict()
        return dense, torch.cat([columns[name] for name in self.feature_names], dim=1)


def _dims_per_feature(names: list[str], dims: Dims) -> list[int]:
    if isinstance(dims, Mapping):
        if missing := [name for name in names if name not in dims]:
            raise ValueError(f"dims has no width for feature {missing[0]!r}: it names {list(dims)}")
        widths = [dims[name] for name in names]
    elif isinstance(dims, int):
        widths = [dims] * len(names)
    else:
        widths = list(dims)
        if len(widths) != len(names):
            raise ValueError(f"dims has {len(widths)} widths for {len(names)} features: give one for each of {names}")
    for name, dim in zip(names, widths, strict=True):
        if dim < 1:
            raise ValueError(f"feature {name!r} has width {dim}: widths start at 1")
    return widths
