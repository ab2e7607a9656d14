"""The checks of a torchrec batch before it is looked up; torchrec itself does not check it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embcomp.ops.checks import check_same_device, check_tensor, lengths_fit, readable

_PLACES = (torch.int64, torch.int32)
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_features(features: Any, needed: Sequence[str], weighted: bool) -> None:
    """Check everything in a batch that decides which memory is read.

    Values are read only on CPU. On a GPU they are checked by asynchronous assertions, which cost no synchronisation;
    compiled and exported graphs keep the checks of shapes and types.

    Args:
        features: the batch.
        needed: the features that are looked up.
        weighted: True if the weights of the ids are used.

    Raises:
        TypeError: `features` is not a KeyedJaggedTensor, or holds something else than tensors.
        KeyError: a feature is missing.
        ValueError: weights are missing; batches differ in size; or lengths, offsets, values, weights and stride
            contradict each other; the text names the feature if one is at fault.
    """
    if not isinstance(features, KeyedJaggedTensor):
        if isinstance(features, torch.fx.Proxy):  # being traced
            return
        raise TypeError(f"features must be a KeyedJaggedTensor, got {type(features).__name__}")
    keys = features.keys()
    missing = [name for name in needed if name not in keys]
    if missing:
        raise KeyError(f"the batch lacks the features {missing}; it has {keys}")
    if features.variable_stride_per_key():
        raise ValueError("batches whose size varies between features are not supported: expand them first")
    if features.inverse_indices_or_none() is not None:
        raise ValueError("batches with inverse indices are not supported: expand them first")
    if weighted and features.weights_or_none() is None:
        raise ValueError("the collection is weighted, but the batch carries no weights: give each id one")
    _check_types(features, weighted)
    if type(features.values()) is Tensor and not torch.compiler.is_compiling():  # no stand-in of a tracer
        _check_sizes(features)


def check_meta(features: Any, collection: nn.Module) -> None:
    """Raise ValueError if a batch is on the meta device, without values, and the collection is not."""
    if isinstance(features, KeyedJaggedTensor) and isinstance(features.values(), Tensor) and features.values().is_meta:
        home = next((parameter.device for parameter in collection.parameters()), features.values().device)
        check_same_device(features.values(), "features", home)


def _check_types(features: KeyedJaggedTensor, weighted: bool) -> None:
    for name, tensor, kinds in (
        ("values", features.values(), None),  # ids are checked with the name of their table
        ("lengths", features.lengths_or_none(), _PLACES),
        ("offsets", features.offsets_or_none(), _PLACES),
        ("weights", features.weights_or_none(), _FLOATS if weighted else None),
    ):
        if tensor is None and name != "values":
            continue
        check_tensor(tensor, f"the batch: {name}")
        assert tensor is not None
        if tensor.dim() != 1:
            raise ValueError(f"the batch: {name} must have one dimension, got shape {list(tensor.shape)}")
        check_same_device(tensor, f"the batch: {name}", features.values().device)
        if kinds is not None and tensor.dtype not in kinds:
            raise ValueError(f"the batch: {name} are {tensor.dtype}, expected {kinds[0]}")
    if features.lengths_or_none() is None and features.offsets_or_none() is None:
        raise ValueError("the batch has neither lengths nor offsets: give it one of them")


def _check_sizes(features: KeyedJaggedTensor) -> None:
    """Check the sizes that the host knows, then the values of tensors."""
    keys, values, total = features.keys(), features.values(), features.values().numel()
    given, weights = features.offsets_or_none(), features.weights_or_none()
    if given is not None and given.numel() == 0 and keys:
        raise ValueError("the batch: offsets are empty, they begin with 0")
    lengths, stride = features.lengths(), features.stride()
    bags = stride * len(keys)
    if stride < 0 or lengths.numel() != bags or (given is not None and given.numel() != bags + 1 and keys):
        told = f"{lengths.numel()} lengths" + ("" if given is None else f", {given.numel()} offsets")
        raise ValueError(f"the batch: {told} for {len(keys)} features {list(keys)} in batches of {stride}")
    if weights is not None and weights.numel() != total:
        raise ValueError(f"the batch: {weights.numel()} weights for {total} values of the features {list(keys)}")
    told = features.length_per_key_or_none()
    if told is not None and (len(told) != len(keys) or sum(told) != total or min(told, default=0) < 0):
        raise ValueError(f"the batch: length_per_key is {told} for {total} values of the features {list(keys)}")
    if not keys:
        if total:
            raise ValueError(f"the batch has {total} values, but no features")
        return
    lengths = lengths.view(len(keys), stride)
    if values.is_meta or lengths.is_meta:
        return
    if not readable(values, lengths, *([] if given is None else [given])):
        fits = (lengths >= 0).all() & (lengths.sum() == total)
        torch._assert_async(fits, "the batch: lengths do not add up to its values")  # pyright: ignore
        return
    sizes = _length_per_key(lengths) if told is None else told
    within = all(0 <= size <= total for size in sizes) and sum(sizes) == total  # sums of tensors would wrap
    if not within or not lengths_fit(lengths.long(), torch.tensor(sizes, dtype=torch.int64, device="cpu")):
        _raise_misfit(keys, lengths, told, total)
    if given is not None:
        _check_offsets(keys, given, lengths)


def _length_per_key(lengths: Tensor) -> list[int]:
    return lengths.sum(1, dtype=torch.int64).tolist()


def _raise_misfit(keys: Sequence[str], lengths: Tensor, told: list[int] | None, total: int) -> None:
    for key, own in zip(keys, lengths, strict=True):
        if (wrong := own[(own < 0) | (own > total)]).numel():
            raise ValueError(f"feature {key!r}: a length of {int(wrong[0])} in a batch of {total} values")
    sums = dict(zip(keys, _length_per_key(lengths), strict=True))
    if told is not None and sum(sums.values()) == total:
        raise ValueError(f"the batch: length_per_key is {told}, but the lengths add up to {sums}")
    raise ValueError(f"the batch: lengths add up to {sums}, {sum(sums.values())} in all, for {total} values")


def _check_offsets(keys: Sequence[str], offsets: Tensor, lengths: Tensor) -> None:
    """Check that given offsets agree with the lengths and begin at 0."""
    if int(offsets[0]) != 0:
        raise ValueError(f"the batch: offsets begin at {int(offsets[0])}, not at 0")
    differ = (offsets.diff() != lengths.reshape(-1)).nonzero()
    if differ.numel():
        bag = int(differ[0])
        raise ValueError(
            f"feature {keys[bag // lengths.shape[1]]!r}: offsets {offsets[bag : bag + 2].tolist()} of bag "
            f"{bag % lengths.shape[1]}, whose length is {int(lengths.reshape(-1)[bag])}"
        )
