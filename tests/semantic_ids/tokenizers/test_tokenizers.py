"""What both tokenizers promise."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from embcomp import semantic_ids
from embcomp.ops.kmeans import kmeans
from embcomp.semantic_ids import RQVAE, ResidualKMeans, Tokenizer
from embcomp.semantic_ids.content import Content
from embcomp.semantic_ids.tokenizers.refine import refine
from embcomp.semantic_ids.tokenizers.rqvae import _exact_layer
from embcomp.semantic_ids.tokenizers.rqvae_training import Training, balanced, rotate

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
    new = torch.cat([content, torch.randn(50, 12)])
    assert torch.equal(codes, tokenizer.encode(new)[:600])  # new items change no old code
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

    path = tmp_path / "runs" / "fit.pt"
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
    with pytest.raises(ValueError, match=r"fit.pt is damaged.*delete it to begin again"):
        make().fit(content, checkpoint=path)


def test_a_tokenizer_is_fitted_once(tokenizer: ResidualKMeans, content: Tensor) -> None:
    with pytest.raises(ValueError, match="fitted and frozen"):
        tokenizer.fit(content)
    with pytest.raises(ValueError, match="not fitted"):
        ResidualKMeans(2, 4).encode(content)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": 0}, "RQVAE: levels must be an integer of at least 1, got 0"),
        ({"levels": 2.0}, "levels must be an integer of at least 1, got 2.0"),
        ({"codebook_size": 1}, "codebook_size must be an integer of at least 2, got 1"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"latent_dim": 0}, "latent_dim must be an integer of at least 1, got 0"),
        ({"hidden": (16, 0)}, r"hidden\[1\] must be an integer of at least 1, got 0"),
        ({"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"patience": 0}, "patience must be an integer of at least 1, got 0"),
        ({"lr": float("nan")}, "lr must be a number of at least 0, got nan"),
        ({"beta": -1.0}, "beta must be a number of at least 0, got -1.0"),
        ({"reset": -1.0}, "reset must be a number of at least 0, got -1.0"),
        ({"sinkhorn": -1.0}, "sinkhorn must be a number of at least 0, got -1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RQVAE(**{"levels": 2, "codebook_size": 4, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": 0}, "ResidualKMeans: iterations must be an integer of at least 1, got 0"),
        ({"rounds": -1}, "rounds must be an integer of at least 0, got -1"),
        ({"sample": 5}, "sample must be an integer of at least 16, got 5"),
        ({"tolerance": float("nan")}, "tolerance must be in"),
    ],
)
def test_bad_settings_of_kmeans_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResidualKMeans(2, 16, **settings)


def test_a_level_without_anything_to_cluster_is_named() -> None:
    with pytest.raises(ValueError, match=r"content, level 2 of 2: there are only 1 different .* or fewer levels"):
        ResidualKMeans(2, 4).fit(torch.eye(4).repeat(5, 1))


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


def training_of(content: Tensor, **settings) -> Training:
    tokenizer = RQVAE(1, **{"latent_dim": 2, "hidden": (), **settings})
    return Training(tokenizer, Content(content), content, torch.tensor(1.0), torch.device("cpu"))


@pytest.mark.parametrize(("batch", "dead"), [(40, [2]), (60, [2, 3]), (20, [])])
def test_dead_is_less_than_a_share_of_the_even_share_of_a_batch(batch: int, dead: list[int]) -> None:
    """With 4 codes and `reset` of a half: 5 of 40 items, 7.5 of 60, 2.5 of 20. Running means fall by a twentieth."""
    content = torch.randn(100, 2)
    training = training_of(content, codebook_size=4, reset=0.5)
    places = torch.tensor([[[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]]])
    training.codebooks, training.counts = places.clone(), torch.tensor([[10.0, 20.0, 5.0, 6.0]])
    training.sums = training.codebooks * training.counts.unsqueeze(2)
    vectors = content[:batch]
    training._move(0, vectors, torch.zeros(batch, dtype=torch.int64), torch.Generator().manual_seed(0))
    for code in (1, 2, 3):
        if code in dead:
            assert (training.codebooks[0, code] - vectors).abs().sum(1).min() < 1e-5  # a vector of the batch
            assert float(training.counts[0, code]) == batch / 4
        else:
            torch.testing.assert_close(training.codebooks[0, code], places[0, code])
    mean = (0.95 * 10 * places[0, 0] + 0.05 * vectors.sum(0)) / (0.95 * 10 + 0.05 * batch)
    torch.testing.assert_close(training.codebooks[0, 0], mean)


def test_codes_of_rqvae_start_from_kmeans_of_the_latents() -> None:
    """Eight clusters, each a code, where the first eight vectors are all of one."""
    angles = torch.arange(8) * torch.pi / 4
    centres = 10 * torch.stack([angles.cos(), angles.sin()], 1)
    content = centres.repeat_interleave(40, 0) + 0.01 * torch.randn(320, 2)
    training = training_of(content, codebook_size=8)
    training._start_codes()
    latents = training.encoder(content).detach()
    assert torch.cdist(latents, training.codebooks[0]).amin(1).max() < 0.1
    assert torch.bincount(torch.cdist(latents, training.codebooks[0]).argmin(1), minlength=8).tolist() == [40] * 8


def test_rqvae_stops_when_it_gets_no_better() -> None:
    """Eight different vectors in eight codes and no learning rate: the first epoch is the best."""
    content = torch.randn(8, 3).repeat(20, 1)
    steps: list[tuple[int, int]] = []
    RQVAE(1, 8, latent_dim=2, hidden=(), lr=0.0, reset=0.0, patience=3, epochs=50).fit(
        content, progress=lambda done, total, text: steps.append((done, total))
    )
    decoder = [(step, 20) for step in range(1, 21)]
    assert steps == [(1, 50), (2, 50), (3, 50), (4, 50), *decoder]


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
