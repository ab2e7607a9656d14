"""The training of an RQ-VAE: batches, gradients past the codes, moving codes."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embcomp.ops.kmeans import Progress, assign, kmeans
from embcomp.semantic_ids.content import Content
from embcomp.semantic_ids.tokenizers.base import Tokenizer
from embcomp.semantic_ids.tokenizers.nearest import nearest
from embcomp.semantic_ids.tokenizers.refine import refine, without
from embcomp.semantic_ids.tokenizers.resume import Checkpoint

DECAY = 0.95  # of the running means of the codes


def residual_kmeans(latents: Tensor, levels: int, size: int, seed: int, rounds: int = 4) -> Tensor:
    """Run residual k-means on latents, and return codebooks, float32 [levels, size, d]."""
    codebooks, rest = [], latents
    for level in range(levels):
        codebooks.append(kmeans(rest, size, iterations=25, tolerance=1e-4, seed=seed * 1000 + level))
        rest = without(rest, codebooks[-1], assign(rest, codebooks[-1])[0])
    return refine(latents, torch.stack(codebooks), rounds=rounds)


def rotate(latents: Tensor, codes: Tensor) -> Tensor:
    """Return `codes`, with a gradient to `latents` as through a rotation and a scaling (Fifty et al.)."""
    with torch.no_grad():
        long, short = latents.norm(dim=1, keepdim=True), codes.norm(dim=1, keepdim=True)
        e, q = latents / long.clamp(min=1e-12), codes / short.clamp(min=1e-12)
        r = F.normalize(e + q, dim=1)
        scale = short / long.clamp(min=1e-12)
    turned = latents - 2 * (latents * r).sum(1, keepdim=True) * r + 2 * (latents * e).sum(1, keepdim=True) * q
    return turned * scale


def balanced(distances: Tensor, temperature: float, rounds: int = 20) -> Tensor:
    """Assign codes evenly, [N]: Sinkhorn-Knopp on exp(-distances / temperature), then the largest."""
    plan = -distances.double() / (temperature * distances.mean().clamp(min=1e-12))
    for _ in range(rounds):
        plan = plan - plan.logsumexp(0, keepdim=True)  # codes alike
        plan = plan - plan.logsumexp(1, keepdim=True)  # items alike
    return plan.argmax(1)


class Training:
    """The networks and codebooks in training."""

    def __init__(
        self, tokenizer: Tokenizer, content: Content, sample: Tensor, scale: Tensor, device: torch.device
    ) -> None:
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
        """Make one pass over the content; return the relative error of the reconstruction in it."""
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

    def _batches(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield batches of scaled vectors; rows are shuffled inside blocks, as content may be larger than memory."""
        size = self.tokenizer.settings["batch_size"]
        for block in self.content.blocks():
            order = torch.randperm(block.shape[0], generator=generator)
            whole = max(size, block.shape[0] // size * size)  # no small batch at the end
            for rows in order[:whole].split(size):
                yield (block[rows].to(self.device)) * self.scale

    def _quantize(self, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the sum of the codes, with a gradient to `latents`, and the commitment error."""
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
        """Update the running means of the codes, and move dead codes to new vectors."""
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
        self.codebooks = residual_kmeans(latents, *self.codebooks.shape[:2], self.tokenizer.seed, rounds=0)
        even = self.tokenizer.settings["batch_size"] / self.codebooks.shape[1]
        self.counts.fill_(even)
        self.sums = self.codebooks * even

    def fit_decoder(self, codebooks: Tensor, tensors: dict[str, Tensor], progress: Progress, epochs: int = 20) -> None:
        """Train the decoder once more, on the final codes."""
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
            progress(epoch + 1, epochs, "decoder, on the final codes")

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
    """A linear map, plus dense layers that start at zero and learn the remainder."""

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
    """The `dim` principal directions, float32 [dim, width], padded with zeros if there are fewer."""
    _, directions = torch.linalg.eigh((vectors.t() @ vectors).double().cpu())
    principal = directions.flip(1).t()[:dim].float()
    return F.pad(principal, (0, 0, 0, dim - principal.shape[0]))
