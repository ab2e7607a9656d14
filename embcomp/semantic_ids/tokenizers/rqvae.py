"""RQ-VAE: an autoencoder whose latent vector is a sum of codes, one from each level."""

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from embcomp.checks import check_whole
from embcomp.ops.kmeans import Progress
from embcomp.semantic_ids.content import Content
from embcomp.semantic_ids.tokenizers.base import Tokenizer
from embcomp.semantic_ids.tokenizers.resume import Checkpoint
from embcomp.semantic_ids.tokenizers.rqvae_training import Training, residual_kmeans

PER_CODE = 256  # vectors for each code in the samples that k-means sees
WEIGHT_BITS, WEIGHT_LIMIT = 16, 8.0  # weights are multiples of 2^-16 below 8: 19 bits and the sign
ACTIVITY_LIMIT = 256.0


class RQVAE(Tokenizer):
    """A residual-quantized autoencoder (Zeghidour et al. 2021; for recommenders Singh et al. 2023, arXiv 2306.08121).

    It has an encoder, `levels` codebooks over the residuals of its latents, and a decoder; encoder and decoder are a
    linear map, which starts at the principal directions, plus dense layers. The loss is the reconstruction error plus
    `beta` times the commitment error, and codes follow running means of their vectors. Three measures prevent collapse:
    the codebooks start from k-means on a large sample of latents; a code that gets less than `reset` times its even
    share of a batch (batch_size / codebook_size) moves to a vector of the batch; and `sinkhorn` balances the assignment
    in training. The gradient passes straight through the codes, or by the rotation trick (Fifty et al. 2024, arXiv
    2410.06424). At the end the codebooks are fitted again on a large sample of the final latents, and the decoder on
    the final codes.

    The fitted encoder computes in fixed point (see `_exact_layer`), so codes are the same on every device.

    Args:
        levels: the number of codes of an item.
        codebook_size: the number of codes at each level.
        latent_dim: the width of the quantized latents.
        hidden: the widths of the encoder's hidden layers; the decoder has the same in reverse.
        beta: the weight of the commitment error.
        epochs: the maximum number of passes over the content.
        batch_size: the number of items of a step.
        lr: the learning rate of Adam.
        reset: the threshold for moving a code, see above; 0 moves none.
        rotation: True for the rotation trick, False for the straight-through gradient.
        sinkhorn: the temperature of the balanced assignment in training, relative to the mean distance; 0 for none.
        patience: the number of epochs without a better reconstruction after which training stops.
        seed: the seed of weights, batches and samples.

    Example:
        >>> import torch
        >>> from embcomp.semantic_ids import RQVAE
        >>> content = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
        >>> tokenizer = RQVAE(levels=2, codebook_size=16, latent_dim=8, hidden=(16,), epochs=2).fit(content)
        >>> tokenizer.encode(content).shape
        torch.Size([500, 2])
    """

    def __init__(
        self,
        levels: int,
        codebook_size: int,
        *,
        latent_dim: int = 64,
        hidden: tuple[int, ...] = (256,),
        beta: float = 0.25,
        epochs: int = 200,
        batch_size: int = 512,
        lr: float = 1e-3,
        reset: float = 0.1,
        rotation: bool = False,
        sinkhorn: float = 0.0,
        patience: int = 30,
        seed: int = 0,
    ) -> None:
        widths = {f"hidden[{i}]": width for i, width in enumerate(hidden)}
        whole = {"latent_dim": latent_dim, "epochs": epochs, "batch_size": batch_size, "patience": patience, **widths}
        for name, value in whole.items():
            check_whole("RQVAE", name, value, 1)
        for name, value in {"beta": beta, "lr": lr, "reset": reset, "sinkhorn": sinkhorn}.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"RQVAE: {name} must be a number of at least 0, got {value!r}")
        super().__init__(
            levels, codebook_size, seed, latent_dim=latent_dim, hidden=list(hidden), beta=beta, epochs=epochs,
            batch_size=batch_size, lr=lr, reset=reset, rotation=rotation, sinkhorn=sinkhorn, patience=patience,
        )  # fmt: skip

    def _fit(
        self, content: Content, device: torch.device, progress: Progress, checkpoint: Path | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        sample = content.sample(PER_CODE * self.codebook_size, self.seed).to(device)
        scale = sample.square().mean().rsqrt()
        training = Training(self, content, sample, scale, device)
        saved = Checkpoint(checkpoint, {"config": self.config(), "sample": sample})
        training.run(saved, progress)
        tensors: dict[str, Tensor] = {"scale": scale}
        for name, tensor in training.encoder.state_dict().items():
            tensors[f"encoder.{name}"] = _to_grid(tensor.double(), WEIGHT_BITS, WEIGHT_LIMIT).float()
        latents = torch.cat([self._latents(block, tensors) for block in sample.split(8192)])
        codebooks = residual_kmeans(latents, self.levels, self.codebook_size, self.seed + 1)
        training.fit_decoder(codebooks, tensors, progress)
        decoder = {f"decoder.{name}": tensor for name, tensor in training.decoder.state_dict().items()}
        return {**tensors, "codebooks": codebooks, **decoder}, sample

    def _latents(self, vectors: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        x = y = (vectors * tensors["scale"]).double()
        for i in range(layers := len(self.settings["hidden"]) + 1):
            y = _exact_layer(y, tensors[f"encoder.layers.{i}.weight"]) + tensors[f"encoder.layers.{i}.bias"].double()
            y = y.relu() if i + 1 < layers else y
        return _to_grid(_exact_layer(x, tensors["encoder.straight.weight"]) + y, 16, ACTIVITY_LIMIT).float()

    def _from_latents(self, latents: Tensor) -> Tensor:
        y = latents
        for i in range(layers := len(self.settings["hidden"]) + 1):
            y = F.linear(y, self.tensors[f"decoder.layers.{i}.weight"], self.tensors[f"decoder.layers.{i}.bias"])
            y = y.relu() if i + 1 < layers else y
        return (F.linear(latents, self.tensors["decoder.straight.weight"]) + y) / self.tensors["scale"]


def _exact_layer(x: Tensor, weight: Tensor) -> Tensor:
    """Compute `x @ weight.t()` in float64 with the same bits everywhere: products and sums are never rounded.

    Inputs are rounded to so few bits that all sums stay below 2^53 steps of their grid; float64 then holds them
    exactly, and the order of summation, the batch size and the device do not matter.
    """
    bits = 53 - 19 - 8 - math.ceil(math.log2(weight.shape[1] + 1))
    x = _to_grid(x, min(16, bits), ACTIVITY_LIMIT)
    return x @ weight.double().t()


def _to_grid(x: Tensor, bits: int, limit: float) -> Tensor:
    """Round to multiples of 2^-bits, below `limit`."""
    step = 2.0**bits
    return (x * step).round().clamp(-limit * step + 1, limit * step - 1) / step
