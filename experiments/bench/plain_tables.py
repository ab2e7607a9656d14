"""TensorTrain and DeepHash in plain torch, written for speed, as references for the bench."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import embcomp
from embcomp.methods.deep_hash import RANGE, Network
from embcomp.methods.tensor_train import Chain, DigitEncoder

_BITS = RANGE.bit_length() - 1


class Distinct(nn.Module):
    """A module that computes the vector of each different id of a batch once."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, ids: Tensor) -> Tensor:
        different, places = torch.unique(ids, return_inverse=True)
        return self.module(different).index_select(0, places)


class PlainTensorTrain(nn.Module):
    """The vectors of a `CompressedEmbedding` of `TensorTrain`, from copies of its cores."""

    def __init__(self, table: embcomp.nn.CompressedEmbedding) -> None:
        super().__init__()
        assert isinstance(table.encoder, DigitEncoder)
        assert isinstance(table.combiner, Chain)
        self.radix, self.shape = table.encoder.radix, table.combiner.shape
        weights = [store.get_parameter("weight") for store in table.stores]
        self.cores = nn.ParameterList([nn.Parameter(weights[read].detach().clone()) for read in table.reads])

    def forward(self, ids: Tensor) -> Tensor:
        (_, n2, n3), (d1, d2, d3), rank = self.radix, self.shape.widths, self.shape.rank
        upper = ids // n3
        digits = (upper // n2, upper % n2, ids % n3)
        first, middle, last = (core.index_select(0, rows) for core, rows in zip(self.cores, digits, strict=True))
        pair = torch.bmm(first.view(-1, d1, rank), middle.view(-1, rank, d2 * rank))
        return torch.bmm(pair.view(-1, d1 * d2, rank), last.view(-1, rank, d3)).view(-1, d1 * d2 * d3)


class PlainDeepHash(nn.Module):
    """The network of a `CompressedEmbedding` of `DeepHash`, copied, behind hashes by multiplication and a shift."""

    keys: Tensor
    shifts: Tensor

    def __init__(self, table: embcomp.nn.CompressedEmbedding, seed: int = 0) -> None:
        super().__init__()
        network = table.combiner
        assert isinstance(network, Network)
        generator, number = torch.Generator().manual_seed(seed), len(network.matrices[0])
        self.register_buffer("keys", 2 * torch.randint(2**62, (number,), generator=generator) + 1)
        self.register_buffer("shifts", torch.randint(2**62, (number,), generator=generator))
        last_bias = table.stores[0].get_parameter("weight")
        self.matrices = nn.ParameterList([nn.Parameter(matrix.detach().clone()) for matrix in network.matrices])
        biases = [*network.biases, last_bias.view(-1)]
        self.biases = nn.ParameterList([nn.Parameter(bias.detach().clone()) for bias in biases])

    def codes(self, ids: Tensor) -> Tensor:
        """Return the hashes of ids, [N] -> [N, hashes], in [-1, 1]."""
        hashed = torch.addcmul(self.shifts, ids.unsqueeze(1), self.keys).bitwise_right_shift_(64 - _BITS)
        return hashed.float().mul_(2 / (RANGE - 1))  # the shift keeps the sign

    def forward(self, ids: Tensor) -> Tensor:
        codes = self.codes(ids)
        *hidden, last = zip(self.matrices, self.biases, strict=True)
        for matrix, bias in hidden:
            codes = torch.addmm(bias, codes, matrix).relu_()
        return torch.addmm(last[1], codes, last[0])
