"""What both tokenizers promise."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from embcomp import semantic_ids
from embcomp.semantic_ids import RQVAE, ResidualKMeans, Tokenizer
from embcomp.semantic_ids.kmeans import kmeans, refine
from embcomp.semantic_ids.rqvae import _exact_layer
from embcomp.semantic_ids.rqvae_training import balanced, rotate

MAKERS: list[Callable[[], Tokenizer]] = [
    lambda: ResidualKMeans(levels=3, codebook_size=16),
    lambda: RQVAE(levels=3, codebook_size=16, latent_dim=12, hidden=(16,), epochs=8, batch_size=128),
]
both = pytest.mark.parametrize("make", MAKERS, ids=["ResidualKMeans", "RQVAE"])


@both
def test_codes_depend_on_the_item_alone(make: Callable[[], Tokenizer], content: Tensor) -> None:
    tokenizer = make().fit(content)
    codes = tokenizer.encode(content)
    assert (codes.dtype, codes.shape) == (torch.int32, (600, 3))
    assert 0 <= int(codes.min()) <= int(codes.max()) < 16
    assert torch.equal(codes, torch.cat([tokenizer.encode(part) for part in content.split(13)]))
    order = torch.randperm(600)
    assert torch.equal(codes[order], tokenizer.encode(content[order]))
    again = make().fit(content)
    assert again.version == tokenizer.version
    assert torch.equal(again.encode(content), codes)


@both
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_codes_on_a_gpu_are_those_of_the_cpu(make: Callable[[], Tokenizer], content: Tensor) -> None:
    tokenizer = make().fit(content)
    assert torch.equal(tokenizer.encode(content), tokenizer.encode(content, device="cuda"))


@both
def test_it_reconstructs_and_uses_its_codes(make: Callable[[], Tokenizer], content: Tensor) -> None:
    tokenizer = make().fit(content)
    codes = tokenizer.encode(content)
    found = tokenizer.quality(codes, content)
    decoded = tokenizer.decode(codes)
    error = float((decoded - content).square().sum() / content.square().sum())
    assert found.relative_error == pytest.approx(error)
    assert error < 0.1
    assert min(found.coverage) > 0.9
    by_hand = [len(set(level.tolist())) / 16 for level in codes.t()]
    assert found.coverage == pytest.approx(by_hand)


@both
def test_a_stopped_fit_goes_on_with_the_same_result(
    make: Callable[[], Tokenizer], content: Tensor, tmp_path: Path
) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, total: int, text: str) -> None:
        if done > 0.6 * total:
            raise Stopped

    path = tmp_path / "fit.pt"
    with pytest.raises(Stopped):
        make().fit(content, progress=stop, checkpoint=path)
    assert path.exists()
    steps: list[int] = []
    resumed = make().fit(content, checkpoint=path, progress=lambda done, total, text: steps.append(done))
    fresh: list[int] = []
    assert make().fit(content, progress=lambda done, total, text: fresh.append(done)).version == resumed.version
    assert len(steps) < len(fresh)
    with pytest.raises(ValueError, match=r"fit.pt: a checkpoint of other content or settings"):
        make().fit(content + 1, checkpoint=path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"fit.pt: the checkpoint is damaged"):
        make().fit(content, checkpoint=path)


def test_a_tokenizer_is_fitted_once(tokenizer: ResidualKMeans, content: Tensor) -> None:
    with pytest.raises(ValueError, match="fitted and frozen"):
        tokenizer.fit(content)
    with pytest.raises(ValueError, match="not fitted"):
        ResidualKMeans(2, 4).encode(content)
    for levels, size, message in (
        (0, 4, "levels must be"),
        (2, 1, "codebook_size must be"),
        (2.0, 4, "levels must be"),
    ):
        with pytest.raises(ValueError, match=message):
            ResidualKMeans(levels, size)  # type: ignore[arg-type]


def test_codes_out_of_range_are_refused(tokenizer: ResidualKMeans) -> None:
    for codes, message in (
        ([[0, 1, 2], [0, 16, 1]], r"codes of item 1 are \[0, 16, 1\], expected \[0, 16\)"),
        ([[0, -1, 2]], r"item 0 are \[0, -1, 2\]"),
        ([[0, 1]], r"integers \[N, 3\], got torch.int64 \[1, 2\]"),
        ([[0.0, 1.0, 1.0]], r"integers \[N, 3\], got torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenizer.decode(torch.tensor(codes))


def test_kmeans_finds_planted_clusters() -> None:
    centres = 10 * torch.eye(8)
    vectors = (centres.unsqueeze(1) + 0.1 * torch.randn(8, 30, 8)).reshape(-1, 8)
    found = kmeans(vectors, 8, iterations=20, tolerance=1e-6, seed=0)
    means = vectors.reshape(8, 30, 8).mean(1)
    assert torch.cdist(found, means).amin(1).max() < 1e-4
    assert torch.cdist(means, found).amin(1).max() < 1e-4


def test_few_wide_vectors_use_the_codes_of_every_level() -> None:
    """All but orthogonal vectors are closest to the shortest seed, and k-means ends with one crowd: perplexity 2."""
    content = torch.nn.functional.normalize(torch.randn(800, 256)) * (1 + torch.rand(800, 1))
    quality = ResidualKMeans(3, 32).fit(content).quality(None, content)
    assert min(quality.perplexity) > 16
    assert quality.unique > 0.95


def test_a_zero_vector_is_no_centre_of_attraction() -> None:
    vectors = torch.randn(800, 256) * (1 + torch.rand(800, 1))
    vectors[::40] = 0  # the residuals of items that a level before told apart
    found = kmeans(vectors, 32, iterations=20, tolerance=1e-4, seed=0)
    assert torch.cdist(vectors, found).argmin(1).bincount(minlength=32).max() < 200


def test_refinement_lowers_the_error_of_greedy_fitting() -> None:
    content = torch.randn(600, 12)
    greedy = ResidualKMeans(3, 16, rounds=0).fit(content)
    refined = ResidualKMeans(3, 16, rounds=4).fit(content)
    assert refined.quality(None, content).relative_error < 0.98 * greedy.quality(None, content).relative_error
    books = refine(content, greedy.codebooks, rounds=1)
    assert books.shape == (3, 16, 12)


def test_the_exact_layer_does_not_round() -> None:
    """Against Python's own whole numbers, at a width where float64 would be out of bits without the grid."""
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randint(-(2**19) + 1, 2**19, (2, 3000), generator=generator).double() / 2**16).float()
    x = 200 * torch.randn(4, 3000, generator=generator, dtype=torch.float64)
    out = _exact_layer(x, weight)
    step = 2 ** (53 - 19 - 8 - 12)
    whole = (x * step).round().clamp(-256 * step + 1, 256 * step - 1).long().tolist()
    scaled = (weight.double() * 2**16).long().tolist()
    for i in range(4):
        for j in range(2):
            assert float(out[i, j]) == sum(a * b for a, b in zip(whole[i], scaled[j], strict=True)) / (step * 2**16)
    assert torch.equal(out, torch.cat([_exact_layer(row, weight) for row in x.split(1)]))


def test_rotation_gives_the_codes_and_turns_the_gradient() -> None:
    """Gradient = (|q| / |e|) R^T g with R the rotation that takes e to q: R is orthogonal and R e is parallel to q."""
    e, q = torch.randn(6, 5, dtype=torch.float64, requires_grad=True), torch.randn(6, 5, dtype=torch.float64)
    torch.testing.assert_close(rotate(e, q), q)
    jacobian = torch.stack([torch.autograd.grad(rotate(e, q)[:, j].sum(), e)[0] for j in range(5)], 1)
    scale = (q.norm(dim=1) / e.norm(dim=1)).detach().view(-1, 1, 1)
    turn = jacobian / scale
    torch.testing.assert_close(turn @ turn.transpose(1, 2), torch.eye(5, dtype=torch.float64).expand(6, 5, 5))
    torch.testing.assert_close((turn @ e.detach().unsqueeze(2)).squeeze(2) * scale.squeeze(2), q)


def test_balanced_assignments_use_every_code_alike() -> None:
    distances = torch.rand(400, 8) + torch.tensor([0.0] + [1.0] * 7)  # code 0 is the nearest of all
    assert distances.argmin(1).eq(0).all()
    counts = torch.bincount(balanced(distances, 0.05), minlength=8)
    assert 30 <= int(counts.min()) <= int(counts.max()) <= 70


@pytest.mark.parametrize("options", [{"rotation": True}, {"sinkhorn": 0.05}, {"hidden": ()}], ids=str)
def test_options_of_rqvae(options: dict, content: Tensor) -> None:
    tokenizer = RQVAE(2, 8, latent_dim=8, epochs=2, **{"hidden": (16,), **options}).fit(content)
    assert tokenizer.quality(None, content).relative_error < 0.3


@pytest.mark.dataset("globo")
def test_globo_figures(dataset: Path) -> None:
    """Residual k-means with 3 x 256 codes: references give .140 and .970 for the plain form."""
    vectors = np.load(dataset / "article_embeddings.npz")["embedding"]
    found = semantic_ids.ResidualKMeans(3, 256).fit(vectors).quality(None, vectors)
    assert found.relative_error <= 0.140
    assert found.unique >= 0.970
    assert min(found.coverage) >= 0.98
