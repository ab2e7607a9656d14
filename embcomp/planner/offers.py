"""The options that need more than sizes: clusters of an interaction graph, and semantic codes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from embcomp.methods.base import Method
from embcomp.methods.graph import GraphHash, SoftGraphHash
from embcomp.methods.low_bit import LowBit
from embcomp.methods.plan import Count
from embcomp.methods.semantic.method import SemanticIds
from embcomp.planner.options import Options
from embcomp.planner.tables import Held, by_name, matches
from embcomp.semantic_ids.pieces.base import PrefixNgram
from embcomp.semantic_ids.pieces.vocabulary import checked_codes
from embcomp.settings import checked, shown

if TYPE_CHECKING:
    from embcomp.graph.cluster_map import Side
    from embcomp.graph.edges import Edges

CLUSTERED = (0.25, 0.19, 0.16, 0.125, 0.09, 0.0625, 0.03, 0.015)
"""The numbers of rows to offer, as shares of the ids: of those of both sides that have clicks, or of a table's."""

MIXED = (2, 4, 8)
"""The numbers of clusters to offer for mixtures."""


LEVELS = (5, 3, 2)
"""The numbers of levels of codes to offer; all of their prefixes own rows. Few levels make a small map."""

SUPPORT = 0.01
"""The support of a piece that new ids read, as a share of the ids."""


def offers(
    held: Sequence[Held],
    count: Count,
    *,
    edges: "Edges | None" = None,
    sides: "Mapping[str, Side] | None" = None,
    content: Mapping[str, Any] | None = None,
    counts: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> dict[str, list[Method]]:
    """Return methods by table that are based on a graph or on content.

    Args:
        held: the tables.
        count: the form whose bytes are limited; with "served" the rows are rounded, too.
        edges: the interactions.
        sides: the tables of the two sides, if the numbers of ids do not determine them.
        content: the codes [num_embeddings, levels] by table.
        counts: the number of times each id occurs in training, by table; ids without any are read as new ones.
        seed: the seed of the clusterings.

    Raises:
        ValueError: no table has as many ids as the graph has users or items, several tables do, or codes have another
            length.
    """
    methods: dict[str, list[Method]] = {}
    if edges is not None:
        check_edges(edges)
        of = _sides(held, edges, sides)
        for name, method in _of_graph(edges, of, seed):
            methods.setdefault(name, []).extend(_around(method, count))
    elif sides is not None:
        raise ValueError("sides names the tables of edges: give edges with it")
    for name, codes in (content or {}).items():
        table = next(t for t in held if t.name == name)
        ids = table.table.ids_or_raise("content")
        if not isinstance(codes, Tensor) or codes.is_floating_point() or codes.ndim != 2 or len(codes) != ids:
            raise ValueError(
                f"content[{name!r}] must be semantic codes, integers [{ids}, levels] (a tokenizer of "
                f"embcomp.semantic_ids makes them from vectors), got {shown(codes)}"
            )
        codes = checked_codes(codes, None, f"content[{name!r}]: codes")
        support, known = max(1, int(ids * SUPPORT)), (counts or {}).get(name)
        for levels in sorted({min(levels, codes.shape[1]) for levels in LEVELS}):
            for share in CLUSTERED:
                method = SemanticIds(
                    codes[:, :levels],
                    PrefixNgram(levels),
                    max(1, int(ids * share)),
                    counts=known,
                    min_support=support,
                    piece_dropout=0.4,
                    seed=seed,
                )
                methods.setdefault(name, []).extend(_around(method, count))
    return methods


def notes_on_offers(
    held: Sequence[Held], options: Options | None, offered: Mapping[str, Sequence[Method]]
) -> list[str]:
    """Return what a user should know of tables with given options, to which nothing is added."""
    patterns = ["*"] if isinstance(options, Sequence) else options or {}
    tables = [t.name for t in held if t.name in offered and any(matches(t, pattern) for pattern in patterns)]
    return [f"tables {tables[:3]} have the given options alone: edges and content add none"] if tables else []


def check_edges(edges: object) -> None:
    """Raise TypeError for anything that is not a graph of interactions."""
    from embcomp.graph.edges import Edges

    if not isinstance(edges, Edges):
        raise TypeError(f"edges must be a graph, which embcomp.graph.interactions makes, got {shown(edges)}")


def _around(method: Method, count: Count) -> Iterator[Method]:
    yield from (LowBit(bits=bits, of=method) for bits in (4, 3, 2)) if count == "served" else (method,)


def only_sides(held: Sequence[Held], edges: "Edges", given: "Mapping[str, Side] | None") -> bool:
    """Return whether the tables are those of users and items, each compressed, and no others."""
    sides = _sides(held, edges, given)
    return {table.name for table in held if not table.kept} == set(sides) and sorted(sides.values()) == [
        "items",
        "users",
    ]


def _sides(held: Sequence[Held], edges: "Edges", given: "Mapping[str, Side] | None") -> "dict[str, Side]":
    if given is not None:
        known = by_name(held, given, "sides")
        for name, side in known.items():
            checked(side, Literal["users", "items"], f"sides[{name!r}]")
            ids = edges.num_users if side == "users" else edges.num_items
            own = next(table.table.num_embeddings for table in held if table.name == name)
            if own != ids:
                raise ValueError(f"sides: table {name!r} has {own} ids, and the graph {ids} {side}")
        return known
    sides: dict[str, Side] = {}
    for side, ids in (("users", edges.num_users), ("items", edges.num_items)):
        owners = [table.name for table in held if table.table.num_embeddings == ids and not table.kept]
        if len(owners) > 1 or (owners and owners[0] in sides):
            raise ValueError(
                f"edges: {owners} have as many ids ({ids}) as the graph has {side}: say sides={{name: {side!r}}}"
            )
        if owners:
            sides[owners[0]] = side  # pyright: ignore[reportArgumentType]
    if not sides:
        raise ValueError(
            f"edges are of {edges.num_users} users and {edges.num_items} items, and no table has as many ids: give "
            "num_users and num_items to `interactions`, or say sides={name: 'users'}"
        )
    return sides


def _of_graph(edges: "Edges", sides: "Mapping[str, Side]", seed: int) -> Iterator[tuple[str, Method]]:
    from embcomp.graph.clustering import cluster
    from embcomp.graph.soft import mixture

    ids = sum(int((edges.degrees(side) > 0).sum()) for side in ("users", "items"))
    for number, share in enumerate(CLUSTERED):  # the graph says how many rows each side gets: clusters stay whole
        clusters = cluster(edges, max(2, int(ids * share)), seed=seed, progress=False)
        for name, side in sides.items():
            own = getattr(clusters, side)
            # With one cluster for each id, two sides of one clustering rank all items of a cluster alike: on Beauty at
            # 1 % R@10 is .070 so, and .083 if users and items have different ones.
            if len(set(sides.values())) == 1 or (number % 2 == 0) == (side == "users"):
                yield name, GraphHash(own, seed=seed)
            mixed = mixture(edges, clusters, side, max(MIXED))
            for k in MIXED:
                yield name, SoftGraphHash(own, weights=mixed, k=k, seed=seed)
