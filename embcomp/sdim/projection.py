"""Fixed random projections, whose signs are the bits of SimHash (Charikar 2002)."""

import abc
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from embcomp.ops.buckets import fast, sign_codes, sign_signatures
from embcomp.ops.signatures import pack


class Projection(nn.Module, abc.ABC):
    """The base of projections, which keeps signatures the same in training and in serving.

    Buffers move with the model but keep their dtype, because `half()` would change signatures. `torch.autocast` would
    change them, too, so it is switched off here: products are float32.
    """

    constant_buffers: ClassVar[bool] = True  # averages of weights leave them alone (`embcomp.averaging`)

    @abc.abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """Project float32 [..., dim] -> float32 [..., num_hashes]."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.amp.is_autocast_available(x.device.type):  # the meta device
            return self.project(x.float())
        with torch.autocast(x.device.type, enabled=False):
            return self.project(x.float())

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        kept = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            if not buffer.is_meta:
                self._buffers[name] = buffer.to(self.get_buffer(name).device)
        return self

    @torch.no_grad()
    def signatures(self, x: Tensor, hash_width: int) -> Tensor:
        """Pack the signs of the projection in groups of `hash_width`: float [..., dim] -> int64 [..., words]."""
        projected = self(x)
        if fast(projected):
            return sign_signatures(projected, None, hash_width)
        return pack(sign_codes(projected, hash_width), hash_width)


class DenseProjection(Projection):
    """The product `x R` with a Gaussian matrix R, `[dim, num_hashes]`, of 4 · dim · num_hashes bytes.

    Shapes: float `[..., dim]` -> float32 `[..., num_hashes]`.

    Example:
        >>> import torch
        >>> DenseProjection(8, 6, seed=0)(torch.ones(2, 8)).shape
        torch.Size([2, 6])
    """

    matrix: Tensor

    def __init__(self, dim: int, num_hashes: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(dim, num_hashes, generator=generator, device="cpu")
        self.register_buffer("matrix", matrix.to(_default_device()))

    def project(self, x: Tensor) -> Tensor:
        return x @ self.matrix

    @torch.no_grad()
    def signatures(self, x: Tensor, hash_width: int) -> Tensor:
        x = x.float()
        return sign_signatures(x, self.matrix, hash_width) if fast(x) else super().signatures(x, hash_width)


class HadamardProjection(Projection):
    """Three rounds of random signs and a Hadamard transform in place of a Gaussian matrix (Andoni et al. 2015).

    `H S3 H S2 H S1 x` (arXiv 1509.02897, section 5), with diagonal sign matrices S, takes O(n log n) operations instead
    of n · m, and 3 n bytes. The width is padded to a power of two, n; more than n hashes take several blocks.

    Shapes: float `[..., dim]` -> float32 `[..., num_hashes]`.

    Example:
        >>> import torch
        >>> HadamardProjection(6, 20, seed=0)(torch.ones(2, 6)).shape  # three blocks of 8
        torch.Size([2, 20])
    """

    signs: Tensor

    def __init__(self, dim: int, num_hashes: int, seed: int) -> None:
        super().__init__()
        self.num_hashes = num_hashes
        self.padding = (1 << (dim - 1).bit_length()) - dim
        width = dim + self.padding
        generator = torch.Generator().manual_seed(seed)
        shape = (3, -(-num_hashes // width), width)
        signs = 2 * torch.randint(0, 2, shape, generator=generator, dtype=torch.int8, device="cpu") - 1
        self.register_buffer("signs", signs.to(_default_device()))

    def project(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(x, (0, self.padding)).unsqueeze(-2)
        for signs in self.signs:
            x = hadamard(x * signs)
        return x.flatten(-2)[..., : self.num_hashes]


def hadamard(x: Tensor) -> Tensor:
    """Return the Walsh-Hadamard transform of the last dimension, whose width is a power of two; not normalised.

    Example:
        >>> import torch
        >>> hadamard(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        tensor([10., -2., -4.,  0.])
    """
    # As products with small Hadamard matrices, digit by digit of the index (H_ab is the Kronecker product of H_a and
    # H_b): butterflies would pass over memory log2(width) times. Each transpose turns the digits on by one.
    width = rest = x.shape[-1]
    while rest > 1:
        digit = min(rest, 16)
        x = (x.unflatten(-1, (width // digit, digit)) @ _sylvester(digit, x)).transpose(-1, -2).flatten(-2)
        rest //= digit
    return x


def _default_device() -> torch.device:
    """Return the device of new buffers: a real one in `with torch.device("meta")`, as `to_empty` does not fill them."""
    device = torch.get_default_device()
    return torch.device("cpu") if device.type == "meta" else device


def _sylvester(size: int, like: Tensor) -> Tensor:
    """Return the Hadamard matrix `[size, size]`, in the dtype and on the device of `like`."""
    matrix = like.new_ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix


PROJECTIONS = {"dense": DenseProjection, "hadamard": HadamardProjection}
