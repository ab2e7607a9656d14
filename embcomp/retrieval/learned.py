"""Learned signs: the recurrent binarization of BEBR, trained on vectors alone."""

import torch
from torch import Tensor
from torch.nn import functional as F

from embcomp.ops.code_search import search_blocks
from embcomp.ops.kmeans import no_progress
from embcomp.ops.packed_columns import PackedColumns
from embcomp.retrieval.checks import check_device, check_matrix
from embcomp.retrieval.compress import stamp_of
from embcomp.retrieval.forms import GridForm, quantized_scales
from embcomp.retrieval.network import SignNetwork, total
from embcomp.retrieval.vector_codes import Metric, VectorCodes
from embcomp.retrieval.ways import Progress, held, least_squares

_TEMPERATURE = 0.05
_BLOCK = 1 << 14  # vectors at a time
_NEAREST = 8  # vectors that a query may be paired with


def learn(
    vectors: Tensor,
    *,
    signs: int | None = None,
    levels: int = 1,
    hidden: int = 256,
    queries: Tensor | None = None,
    old: VectorCodes | None = None,
    metric: Metric = "dot",
    epochs: int = 10,
    batch_size: int = 1024,
    lr: float = 1e-3,
    noise: float = 0.6,
    hard: int = 50,
    version: str | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> VectorCodes:
    """Train the recurrent binarization of BEBR (arXiv 2302.08714) on vectors, and code them with it.

    The loss is InfoNCE between codes (cosine, temperature .05): each code should be closer to its pair than to the
    other codes of the batch, of which the `hard` closest count; vectors near the same query do not count as others. A
    pair is a vector and the vector with noise, or with `queries` a query and one of the vectors nearest to it. With
    `old` the codes of an earlier model are added as pairs, so that queries of the new model work on the old codes. The
    decoding matrix is fitted by least squares, so that float queries work, too.

    Args:
        vectors: the vectors, floats [n, dim].
        signs: the number of signs of each level; by default as many as values.
        levels: the number of levels, 1 to 4; each adds the signs of the remainder.
        hidden: the width of the hidden layers.
        queries: a sample of queries, floats [m, dim].
        old: the learned codes of an earlier model's vectors, row by row, with as many signs and levels.
        metric: "dot", or "cosine" to normalize vectors and queries first.
        epochs: the number of passes over the vectors, or over the queries if there are some.
        batch_size: the number of pairs in a batch.
        lr: the learning rate of Adam, which falls to 0.
        noise: the length of the noise, as a share of the vector's.
        hard: the number of other vectors of a batch that each is compared with.
        version: a stamp of the model; by default a checksum of the vectors.
        seed: the seed of all draws.
        progress: a function that is told (steps done, steps, loss).

    Returns:
        The codes; their `network` codes queries.

    Raises:
        ValueError: values are NaN, a row is zero with "cosine", there are fewer than two vectors, or the old codes do
            not fit.

    Example:
        >>> import torch
        >>> from embcomp import retrieval
        >>> vectors = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
        >>> codes = retrieval.learn(vectors, signs=32, epochs=2, hidden=16, batch_size=100)
        >>> codes.search(vectors[:2], k=3, how="hamming").rows.shape
        torch.Size([2, 3])
    """
    vectors = check_matrix(vectors, "vectors", cosine=metric == "cosine")
    if len(vectors) < 2:
        raise ValueError(f"{len(vectors)} vectors are too few to learn from: give at least 2")
    if not 1 <= levels <= 4:
        raise ValueError(f"levels must be 1 to 4, got {levels}")
    signs = vectors.shape[1] if signs is None else signs
    stamp = stamp_of(vectors) if version is None else version
    if metric == "cosine":
        vectors = F.normalize(vectors)
    nearest = None
    if queries is not None:
        check_device(queries, "queries", vectors.device)
        queries = check_matrix(queries, "queries", vectors.shape[1], metric == "cosine")
        nearest = search_blocks(vectors.__getitem__, len(vectors), queries, min(_NEAREST, len(vectors))).rows
    before = None if old is None else _old_codes(old, len(vectors), signs, levels)
    with torch.random.fork_rng(devices=[], enabled=True):
        torch.manual_seed(seed)
        network = SignNetwork(vectors.shape[1], signs, levels, hidden).to(vectors.device)
        anchors = vectors if queries is None else queries
        batch_size = min(batch_size, len(anchors))
        steps = max(1, len(anchors) // batch_size) * epochs
        optimizer = torch.optim.Adam(network.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / max(steps, 1))
        network.train()
        done = 0
        for _ in range(epochs):
            order = torch.randperm(len(anchors)).to(vectors.device)
            for chosen in order.split(batch_size):
                if len(chosen) < batch_size:
                    continue
                if queries is None or nearest is None:
                    rows, other = chosen, vectors[chosen]
                    pairs = rows.unsqueeze(1) == rows
                    spread = noise * torch.linalg.vector_norm(other, dim=1, keepdim=True) / other.shape[1] ** 0.5
                    first = other + spread * torch.randn(other.shape).to(other)
                else:
                    rows = nearest[chosen, torch.randint(0, nearest.shape[1], (len(chosen),)).to(vectors.device)]
                    first = queries[chosen]
                    pairs = (nearest[chosen].unsqueeze(1) == rows.unsqueeze(1)).any(2)  # any near one is no other
                codes = _code(network, torch.cat([first, vectors[rows]]))
                loss = _contrast(*codes.chunk(2), pairs, hard)
                if before is not None:
                    known = rows < len(before)
                    for half in codes.chunk(2):
                        loss = loss + 0.5 * _contrast(half[known], before[rows[known]], pairs[known][:, known], hard)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                done += 1
                progress(done, steps, f"loss {loss.item():.4f}")
    network.eval()
    form = _coded(network, vectors)
    settings = {"way": "learned", "signs": signs, "levels": levels, "epochs": epochs, "seed": seed}
    return VectorCodes(form, metric=metric, version=stamp, settings=settings, network=network)


def _code(network: SignNetwork, vectors: Tensor) -> Tensor:
    return total(torch.cat(network(vectors), 1), network.levels)


def _contrast(first: Tensor, second: Tensor, pairs: Tensor, hard: int) -> Tensor:
    """The InfoNCE of pairs against the hardest others of the batch; `pairs`, bool [n, n], are not others."""
    scores = F.normalize(first) @ F.normalize(second).T / _TEMPERATURE
    right = scores.diagonal().unsqueeze(1)
    hardest = scores.masked_fill(pairs, -torch.inf).topk(min(hard, len(scores)), 1).values
    return F.cross_entropy(
        torch.cat([right, hardest], 1), torch.zeros(len(scores), dtype=torch.int64).to(scores.device)
    )


def _old_codes(old: VectorCodes, rows: int, signs: int, levels: int) -> Tensor:
    form, network = old.form, old.network
    if network is None or not isinstance(form, GridForm) or (network.number, network.levels) != (signs, levels):
        raise ValueError(f"old must be learned codes of {signs} signs and {levels} levels, got {old!r}")
    if len(old) > rows:
        raise ValueError(f"old holds {len(old)} vectors, there are {rows} now: rows must be those of the same items")
    return total(2 * form.codes.centered(torch.arange(len(old), device=old.device)), levels)


@torch.no_grad()
def _coded(network: SignNetwork, vectors: Tensor) -> GridForm:
    """Code all vectors by a trained network, and fit the matrix that decodes them best."""
    codes = torch.cat([network.signs(block) for block in vectors.split(_BLOCK)]) / 2
    unit = F.normalize(vectors).double()
    gram = codes.double().T @ codes.double()
    ridge = 1e-6 * float(gram.diagonal().mean()) * torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    basis = held(torch.linalg.solve(gram + ridge, codes.double().T @ unit).float())
    scales, sizes = quantized_scales(least_squares(vectors, codes @ basis.float()).squeeze(1))
    packed = PackedColumns.of((codes > 0).to(torch.uint8), ((codes.shape[1], 1),))
    return GridForm(packed, basis, scales, sizes, vectors.shape[1], network.levels)
