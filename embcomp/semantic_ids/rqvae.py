"""RQ-VAE: an autoencoder whose latent vector is a sum of codes, one from each level."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embcomp.semantic_ids.content import Content
from embcomp.semantic_ids.kmeans import Progress, assign, kmeans, refine
from embcomp.semantic_ids.resume import Checkpoint
from embcomp.semantic_ids.tokenizer import Tokenizer

PER_CODE = 256  # vectors for each code in the samples that k-means sees
DECAY = 0.95  # of the running means of the codes


class RQVAE(Tokenizer):
    """Residual-quantized autoencoder (Zeghidour et al. 2021; for recommenders Singh et al. 2023, arXiv 2306.08121).

    An encoder of dense layers, `levels` codebooks over its residuals, a decoder. The loss is the reconstruction error
    plus `beta` times the commitment error. Codes follow running means of their vectors. Against collapse: the
    codebooks start from k-means on a large sample of latents; a code that gets less than `reset` times its even share
    of a batch (batch_size / codebook_size) moves to a vector of the batch; the gradient passes the codes by the
    rotation trick (Fifty et al. 2024, arXiv 2410.06424); and `sinkhorn` can balance the assignment while training.
    At the end the codebooks are fitted again on a large sample of the final latents, and the decoder on the final
    codes.

    The fitted encoder computes in fixed point (see `_exact_layer`), so codes are the same on every device.

    Args:
        levels: codes of an item.
        codebook_size: codes to choose from, at each level.
        latent_dim: width of what is quantized.
        hidden: widths of the encoder's hidden layers; the decoder has the same in reverse.
        beta: weight of the commitment error.
        epochs: over the content, at most.
        batch_size: items of a step.
        lr: learning rate of Adam.
        reset: see above; 0 resets nothing.
        rotation: False for the straight-through gradient.
        sinkhorn: temperature of the balanced assignment in training, relative to the mean distance; 0 for none.
        patience: stop after so many epochs without a better reconstruction.
        seed: of weights, batches and samples.

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
        super().__init__(
            levels, codebook_size, seed, latent_dim=latent_dim, hidden=list(hidden), beta=beta, epochs=epochs,
            batch_size=batch_size, lr=lr, reset=reset, rotation=rotation, sinkhorn=sinkhorn, patience=patience,
        )  # fmt: skip

    def _fit(
        self, content: Content, device: torch.device, progress: Progress, checkpoint: Path | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        sample = content.sample(PER_CODE * self.codebook_size, self.seed).to(device)
        scale = sample.square().mean().rsqrt()
        training = _Training(self, content, sample, scale, device)
        saved = Checkpoint(checkpoint, {"config": self.config(), "sample": sample})
        training.run(saved, progress)
        tensors: dict[str, Tensor] = {"scale": scale}
        for name, tensor in training.encoder.state_dict().items():
            tensors[f"encoder.{name}"] = _to_grid(tensor.double(), WEIGHT_BITS, WEIGHT_LIMIT).float()
        latents = torch.cat([self._latents(block, tensors) for block in sample.split(8192)])
        codebooks = _codebooks(latents, self.levels, self.codebook_size, self.seed + 1)
        training.fit_decoder(codebooks, tensors)
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


# --- the exact encoder ---

WEIGHT_BITS, WEIGHT_LIMIT = 16, 8.0  # weights are multiples of 2^-16 below 8: 19 bits and the sign
ACTIVITY_LIMIT = 256.0


def _exact_layer(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.t()` in float64 that gives the same bits everywhere: products and sums that are never rounded.

    Inputs are rounded to so many bits that all sums stay below 2^53 steps of their grid; float64 then holds them
    exactly, and the order of summation, the batch size and the device do not matter.
    """
    bits = 53 - 19 - 8 - math.ceil(math.log2(weight.shape[1] + 1))
    x = _to_grid(x, min(16, bits), ACTIVITY_LIMIT)
    return x @ weight.double().t()


def _to_grid(x: Tensor, bits: int, limit: float) -> Tensor:
    """Multiples of 2^-bits, below `limit`."""
    step = 2.0**bits
    return (x * step).round().clamp(-limit * step + 1, limit * step - 1) / step


# --- training ---


def _codebooks(latents: Tensor, levels: int, size: int, seed: int, rounds: int = 4) -> Tensor:
    """Residual k-means of latents, float32 [levels, size, d]."""
    codebooks, rest = [], latents
    for level in range(levels):
        codebooks.append(kmeans(rest, size, iterations=25, tolerance=1e-4, seed=seed * 1000 + level))
        rest = rest - codebooks[-1][assign(rest, codebooks[-1])[0]]
    return refine(latents, torch.stack(codebooks), rounds=rounds)


def rotate(latents: Tensor, codes: Tensor) -> Tensor:
    """`codes` in value; the gradient reaches `latents` as if a rotation and a scaling had led there (section 4.2)."""
    with torch.no_grad():
        long, short = latents.norm(dim=1, keepdim=True), codes.norm(dim=1, keepdim=True)
        e, q = latents / long.clamp(min=1e-12), codes / short.clamp(min=1e-12)
        r = F.normalize(e + q, dim=1)
        scale = short / long.clamp(min=1e-12)
    turned = latents - 2 * (latents * r).sum(1, keepdim=True) * r + 2 * (latents * e).sum(1, keepdim=True) * q
    return turned * scale


def balanced(distances: Tensor, temperature: float, rounds: int = 20) -> Tensor:
    """An assignment [N] that uses codes evenly: Sinkhorn-Knopp on exp(-distances / temperature), then the largest."""
    plan = -distances.double() / (temperature * distances.mean().clamp(min=1e-12))
    for _ in range(rounds):
        plan = plan - plan.logsumexp(0, keepdim=True)  # codes alike
        plan = plan - plan.logsumexp(1, keepdim=True)  # items alike
    return plan.argmax(1)


class _Training:
    """The networks and codebooks while they learn."""

    def __init__(self, tokenizer: RQVAE, content: Content, sample: Tensor, scale: Tensor, device: torch.device) -> None:
        self.tokenizer, self.content, self.sample, self.scale, self.device = tokenizer, content, sample, scale, device
        s = tokenizer.settings
        widths = [content.width, *s["hidden"], s["latent_dim"]]
        straight = _principal(sample * scale, s["latent_dim"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(tokenizer.seed)
            self.encoder = _Network(widths, straight).to(device)
            self.decoder = _Network(widths[::-1], straight.t()).to(device)
        self.parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=s["lr"])
        shape = (tokenizer.levels, tokenizer.codebook_size)
        self.codebooks = torch.zeros(*shape, s["latent_dim"], device=device)
        self.counts = torch.zeros(shape, device=device)  # running means of items and of their sum, for each code
        self.sums = torch.zeros_like(self.codebooks)
        self.epoch, self.best, self.stale = 0, float("inf"), 0

    def run(self, saved: Checkpoint, progress: Progress) -> None:
        settings = self.tokenizer.settings
        if state := saved.load():
            self._restore(state)
        else:
            self._start_codes()
        while self.epoch < settings["epochs"] and self.stale < settings["patience"]:
            error = self._epoch()
            self.stale = 0 if error < 0.999 * self.best else self.stale + 1
            self.best = min(self.best, error)
            self.epoch += 1
            progress(self.epoch, settings["epochs"], f"relative error {error:.4f}")
            saved.save(self._state())

    def _epoch(self) -> float:
        """One pass; the relative error of the reconstruction on the way."""
        error = total = 0.0
        generator = torch.Generator().manual_seed(self.tokenizer.seed * 100_003 + self.epoch)
        for vectors in self._batches(generator):
            latents = self.encoder(vectors)
            summed, commitment = self._quantize(latents, generator)
            missed = (self.decoder(summed) - vectors).square().sum()
            (missed / vectors.numel() + self.tokenizer.settings["beta"] * commitment).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            error, total = error + float(missed.detach()), total + float(vectors.square().sum())
        return error / total

    def _batches(self, generator: torch.Generator):
        """Batches of scaled vectors: rows shuffled inside blocks, as content may be larger than memory."""
        size = self.tokenizer.settings["batch_size"]
        for block in self.content.blocks():
            order = torch.randperm(block.shape[0], generator=generator)
            whole = max(size, block.shape[0] // size * size)  # no small batch at the end
            for rows in order[:whole].split(size):
                yield (block[rows].to(self.device)) * self.scale

    def _quantize(self, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The sum of the codes, with a gradient to `latents`, and the commitment error."""
        settings = self.tokenizer.settings
        rest, commitment = latents, latents.new_zeros(())
        for level, codebook in enumerate(self.codebooks):
            flat = rest.detach()
            if settings["sinkhorn"]:
                index = balanced(torch.cdist(flat, codebook).square(), settings["sinkhorn"])
            else:
                index, _ = assign(flat, codebook)
            chosen = codebook[index]
            commitment = commitment + F.mse_loss(rest, chosen)
            self._move(level, flat, index, generator)
            rest = rest - chosen
        summed = (latents - rest).detach()
        return (rotate(latents, summed) if settings["rotation"] else latents + (summed - latents).detach()), commitment

    @torch.no_grad()
    def _move(self, level: int, vectors: Tensor, index: Tensor, generator: torch.Generator) -> None:
        """Running means of the codes, and new places for those that died."""
        counts = torch.bincount(index, minlength=self.codebooks.shape[1]).float()
        sums = torch.zeros_like(self.sums[level]).index_add_(0, index, vectors)
        self.counts[level].lerp_(counts, 1 - DECAY)
        self.sums[level].lerp_(sums, 1 - DECAY)
        even = vectors.shape[0] / self.codebooks.shape[1]
        dead = (self.counts[level] < self.tokenizer.settings["reset"] * even).nonzero().squeeze(1)
        if dead.numel():
            drawn = torch.randint(vectors.shape[0], (dead.numel(),), generator=generator).to(vectors.device)
            self.counts[level, dead] = even
            self.sums[level, dead] = vectors[drawn] * even
        self.codebooks[level] = self.sums[level] / self.counts[level].clamp(min=1e-6).unsqueeze(1)

    @torch.no_grad()
    def _start_codes(self) -> None:
        latents = torch.cat([self.encoder(block * self.scale) for block in self.sample.split(8192)])
        self.codebooks = _codebooks(latents, *self.codebooks.shape[:2], self.tokenizer.seed, rounds=0)
        even = self.tokenizer.settings["batch_size"] / self.codebooks.shape[1]
        self.counts.fill_(even)
        self.sums = self.codebooks * even

    def fit_decoder(self, codebooks: Tensor, tensors: dict[str, Tensor], epochs: int = 20) -> None:
        """The decoder once more, on the codes as they will be."""
        from embcomp.semantic_ids.nearest import nearest

        optimizer = torch.optim.Adam(self.decoder.parameters(), lr=self.tokenizer.settings["lr"])
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for epoch in range(epochs):
            generator = torch.Generator().manual_seed(self.tokenizer.seed * 100_003 + 50_000 + epoch)
            for vectors in self._batches(generator):
                rest = latents = self.tokenizer._latents(vectors / self.scale, tensors)
                for codebook in codebooks:
                    rest = rest - codebook[nearest(rest, codebook)]
                F.mse_loss(self.decoder(latents - rest), vectors).backward()
                optimizer.step()
                optimizer.zero_grad()
            schedule.step()

    def _state(self) -> dict[str, Any]:
        return {
            "networks": [self.encoder.state_dict(), self.decoder.state_dict()],
            "optimizer": self.optimizer.state_dict(),
            "codes": [self.codebooks, self.counts, self.sums],
            "progress": [self.epoch, self.best, self.stale],
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.encoder.load_state_dict(state["networks"][0])
        self.decoder.load_state_dict(state["networks"][1])
        self.optimizer.load_state_dict(state["optimizer"])
        self.codebooks, self.counts, self.sums = (tensor.to(self.device) for tensor in state["codes"])
        self.epoch, self.best, self.stale = state["progress"]


class _Network(nn.Module):
    """A linear map, plus dense layers that start at zero and learn what it misses."""

    def __init__(self, widths: list[int], straight: Tensor) -> None:
        super().__init__()
        self.straight = nn.Linear(widths[0], widths[-1], bias=False)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        with torch.no_grad():
            self.straight.weight.copy_(straight)
            for parameter in self.layers[-1].parameters():
                parameter.zero_()

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i, layer in enumerate(self.layers):
            y = layer(y).relu() if i + 1 < len(self.layers) else layer(y)
        return self.straight(x) + y


def _principal(vectors: Tensor, dim: int) -> Tensor:
    """The `dim` principal directions, float32 [dim, width]; zeros below where there are fewer."""
    _, directions = torch.linalg.eigh((vectors.t() @ vectors).double().cpu())
    found = directions.flip(1).t()[:dim].float()
    return F.pad(found, (0, 0, 0, dim - found.shape[0]))
