"""`choose`: the way of coding vectors that keeps most of a ranking in a number of bytes, found by trying."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from embcomp.methods.request import Budget
from embcomp.ops.kmeans import no_progress
from embcomp.retrieval.candidates import candidates
from embcomp.retrieval.checks import check_k, check_matrix
from embcomp.retrieval.compress import compress
from embcomp.retrieval.named import way
from embcomp.retrieval.ranking import Ranking
from embcomp.retrieval.vector_codes import Metric
from embcomp.retrieval.ways import FLOAT32, Progress
from embcomp.settings import Bytes, checked
from embcomp.sizes import grouped, parse_nbytes, text_table


@dataclass(frozen=True)
class Tried:
    """A way that was tried.

    Attributes:
        name: the way in words.
        settings: the arguments of `embcomp.retrieval.compress`, without queries.
        nbytes: the bytes of all vectors, coded.
        recall: the recall of the ranking by coded vectors.
        agreement: the share of the float vectors' best k that are among the best k by coded vectors.
        noise: the standard error of the difference between its recall and that of the way with the largest one.
    """

    name: str
    settings: Mapping[str, Any]
    nbytes: int
    recall: float
    agreement: float
    noise: float


@dataclass(frozen=True)
class Choice:
    """The ways that were tried, best first; `print` shows them as a table.

    Attributes:
        tried: the ways.
        full: the recall of the ranking by float vectors.
        budget: the bytes that were allowed.
        k: the number of results that were looked at.
        queries: the queries that `compress` needs with the chosen settings, or None.
    """

    tried: Sequence[Tried]
    full: float
    budget: int
    k: int
    queries: Tensor | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of `embcomp.retrieval.compress` for the chosen way."""
        given = dict(self.tried[0].settings)
        return given if self.queries is None else {**given, "queries": self.queries}

    @property
    def nbytes(self) -> int:
        """The bytes of all vectors, coded in the chosen way."""
        return self.tried[0].nbytes

    def __str__(self) -> str:
        header = ("way", "bytes", f"R@{self.k}", f"best {self.k} kept")
        rows = [(t.name, grouped(t.nbytes), f"{t.recall:.4f}", f"{t.agreement:.4f}") for t in self.tried]
        return text_table(header, [*rows, ("float vectors", "", f"{self.full:.4f}", "1.0000")], left=1)


@torch.no_grad()
def choose(
    vectors: Tensor,
    nbytes: Budget,
    *,
    queries: Tensor | None = None,
    wanted: Tensor | None = None,
    known: Tensor | None = None,
    k: int = 10,
    ways: Sequence[Mapping[str, Any]] | None = None,
    metric: Metric = "dot",
    seed: int = 0,
    progress: Progress = no_progress,
) -> Choice:
    """Choose the way of `embcomp.retrieval.compress` that keeps most of a ranking in a number of bytes.

    Every way that fits is tried: the vectors are coded, and all of them are ranked for the queries. The ways are
    ordered by recall at k: of the wanted pairs if there are some, else of the float vectors' own best k. Ways whose
    recall is below the largest one by less than the noise (a standard error of the difference, query by query) are
    ordered by how much of the float vectors' best k they keep. At most 4,096 queries rank at most 65,536 vectors.

    Args:
        vectors: the final vectors of items, floats [n, dim].
        nbytes: the bytes for all coded vectors: a number, "5MB", or "10%" of the vectors in float32.
        queries: a sample of queries, floats [m, dim]; by default some of the vectors, each ranking the others.
        wanted: the pairs of a query and a vector that it should find, int64 [2, E], which were not trained on.
        known: the pairs of a query and a vector that is left out of its ranking, int64 [2, N], such as past clicks.
        k: the number of results that are looked at.
        ways: the settings to try, as arguments of `compress`; by default all kinds of ways in the sizes that fit.
        metric: "dot" or "cosine", as for `compress`.
        seed: the seed of samples, draws and code books.
        progress: a function that is told (ways tried, ways, text).

    Returns:
        The choice; its `settings` go into `compress`.

    Raises:
        TypeError: an argument is not a tensor, or nbytes is not a size.
        ValueError: no way fits (the error names the least bytes that one takes), vectors or queries are invalid as in
            `compress`, pairs are given without queries or are out of range, or k exceeds the vectors.

    Example:
        >>> import torch
        >>> from embcomp import retrieval
        >>> draw = torch.Generator().manual_seed(0)
        >>> items = torch.randn(2000, 16, generator=draw) * torch.linspace(2, 0.1, 16)
        >>> choice = retrieval.choose(items, "10%", queries=torch.randn(300, 16, generator=draw))
        >>> codes = retrieval.compress(items, **choice.settings, version="monday")
        >>> codes.nbytes <= choice.nbytes <= 0.1 * items.nbytes
        True
    """
    vectors = check_matrix(vectors, "vectors", cosine=metric == "cosine")
    check_k(k, len(vectors))
    budget = checked(parse_nbytes(nbytes, FLOAT32 * vectors.numel()), Bytes, "nbytes")
    rows, dim = vectors.shape
    offered = _offered(rows, dim, budget, ways)
    ranking = Ranking.of(vectors, queries, wanted, known, k, metric, seed)
    asked = None if queries is None else ranking.queries
    tries: list[tuple[str, Tensor, Tensor]] = []
    for name, settings in offered.items():
        given = {**settings, "queries": asked} if settings.get("rotation") == "svd" else settings
        decoded = compress(ranking.vectors, **given, metric=metric, seed=seed).decode()
        recall, agreement = ranking.kept(decoded)
        tries.append((name, recall, agreement))
        progress(len(tries), len(offered), f"{name}: R@{k} {float(recall.mean()):.4f}")
    most = max((recall for _, recall, _ in tries), key=lambda recall: float(recall.mean()))
    tried = []
    for name, recall, agreement in tries:
        noise = float((most - recall).std()) / math.sqrt(len(recall)) if len(recall) > 1 else 0.0
        size = way(**offered[name]).nbytes(rows, dim)
        tried.append(Tried(name, offered[name], size, float(recall.mean()), float(agreement.mean()), noise))
    best = float(most.mean())
    tried.sort(key=lambda t: (0, -t.agreement) if t.recall >= best - t.noise else (1, -t.recall))
    needed = asked if tried[0].settings.get("rotation") == "svd" else None
    full = _recall_of_floats(ranking, metric)
    return Choice(tried, full, budget, k, needed)


def _recall_of_floats(ranking: Ranking, metric: Metric) -> float:
    vectors = F.normalize(ranking.vectors) if metric == "cosine" else ranking.vectors
    return float(ranking.kept(vectors)[0].mean())


def _offered(rows: int, dim: int, budget: int, ways: Sequence[Mapping[str, Any]] | None) -> dict[str, dict[str, Any]]:
    """Return the ways that fit, by name."""
    if ways is None:
        fitting = candidates(rows, dim, budget)
        least = {"bits": 4, "rotation": "svd", "width": min(2, dim)}, {"bits": 1}
    else:
        named = {", ".join(f"{name} {value}" for name, value in each.items()): dict(each) for each in ways}
        fitting = {name: each for name, each in named.items() if way(**each).nbytes(rows, dim) <= budget}
        least = tuple(named.values())
    if not fitting:
        fewest = min((way(**each).nbytes(rows, dim) for each in least), default=0)
        raise ValueError(
            f"nbytes={budget}: no way codes {rows} vectors of {dim} values in so few bytes; the least is {fewest}"
        )
    return fitting
