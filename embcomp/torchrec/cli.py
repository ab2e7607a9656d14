"""The command `embcomp plan`: the cost of sharded training of full and compressed tables on so many GPUs."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated

import typer
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from embcomp.formats import text_table
from embcomp.methods.base import METHODS, Method, Table
from embcomp.methods.full import Full
from embcomp.torchrec.estimate import Estimate, estimate, readable_bytes

app = typer.Typer(add_completion=False)

HEADER = ("tables", "bytes", "GPUs", "sharding", "fullest GPU", "ids", "vectors", "gradients")
DEFAULT = ["HashingTrick", "DoubleHash", "UnifiedEmbedding", "UnifiedEmbedding/8"]


@app.command()
def plan(
    features: Annotated[int, typer.Option(min=1, help="Features, each with a table of its own.")] = 26,
    ids: Annotated[float, typer.Option(min=1, help="Ids of each feature.")] = 1e9,
    dim: Annotated[int, typer.Option(min=4, help="Width of a vector.")] = 64,
    methods: Annotated[
        list[str] | None,
        typer.Option("--method", help="A method's name; NAME/8 for 8 instances, each for a part of the features."),
    ] = None,
    shares: Annotated[
        list[float] | None, typer.Option("--share", min=0, max=1, help="Part of the full tables' bytes.")
    ] = None,
    gpus: Annotated[list[int] | None, typer.Option(min=1, help="GPUs together, each with a process.")] = None,
    gpus_per_node: Annotated[int, typer.Option(min=1)] = 8,
    gpu_gb: Annotated[float, typer.Option(min=0, help="Memory of a GPU in 10^9 bytes.")] = 80,
    reserve: Annotated[float, typer.Option(help="Part of it for dense layers and activations.")] = 0.15,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples on each GPU.")] = 8192,
    ids_per_bag: Annotated[float, typer.Option(help="Mean length of a bag.")] = 1.0,
    markdown: Annotated[bool, typer.Option(help="A Markdown table.")] = False,
) -> None:
    """Estimate memory and bytes sent per step with torchrec's planner, without a GPU and without allocating tables."""
    tables = [
        EmbeddingBagConfig(name=f"t{i}", num_embeddings=int(ids), embedding_dim=dim, feature_names=[f"f{i}"])
        for i in range(features)
    ]
    logging.getLogger("torchrec").setLevel(logging.ERROR)  # it would have the bandwidths of the hardware at hand
    lines: list[tuple[str, ...]] = []
    try:
        for name, chosen in _candidates(tables, methods or DEFAULT, shares or [0.1, 0.01]):
            for number in gpus or [1, 8, 64]:
                cost = estimate(
                    tables, chosen, gpus=number, gpus_per_node=gpus_per_node, gpu_bytes=int(gpu_gb * 1e9),
                    reserve=reserve, batch_size=batch_size, ids_per_bag=ids_per_bag,
                )  # fmt: skip
                lines.append(_line(name, cost))
    except (ValueError, TypeError) as error:
        typer.echo(f"embcomp plan: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(_markdown(lines) if markdown else text_table(HEADER, lines, left=1))


def _candidates(
    tables: Sequence[EmbeddingBagConfig], names: Sequence[str], shares: Sequence[float]
) -> Iterator[tuple[str, Mapping[str, Method]]]:
    """Yield the full tables, then each method at each share of their bytes."""
    yield "Full", {"*": Full()}
    asked = [Table(t.name, t.num_embeddings, t.embedding_dim) for t in tables]
    for share in shares:
        for name in names:
            kind, _, instances = name.partition("/")
            if kind not in METHODS or (instances and not 1 <= int(instances) <= len(asked)):
                raise ValueError(f"--method {name}: the methods are {', '.join(METHODS)}, or NAME/2 .. {len(asked)}")
            chosen: dict[str, Method] = {}
            for group in _parts(asked, int(instances or 1)):
                full = sum(4 * t.ids_or_raise(name) * t.embedding_dim for t in group)
                try:
                    method = METHODS[kind].for_budget(group, int(share * full))
                except TypeError as error:
                    raise ValueError(f"--method {name}: it is made from data, not from sizes alone ({error})") from None
                chosen.update(dict.fromkeys((t.name for t in group), method))
            yield f"{name}, {100 * share:g} %", chosen


def _parts(tables: Sequence[Table], number: int) -> list[Sequence[Table]]:
    """Split tables into parts of nearly equal number."""
    bounds = [len(tables) * i // number for i in range(number + 1)]
    return [tables[first:last] for first, last in pairwise(bounds)]


def _line(name: str, cost: Estimate) -> tuple[str, ...]:
    start = (name, readable_bytes(cost.nbytes), str(cost.gpus))
    if cost.sent is None:
        return (*start, cost.problem, "", "", "", "")
    sharding = ", ".join(f"{number} {kind.replace('_', '-')}" for kind, number in cost.sharding.items())
    sizes = (max(cost.memory), cost.sent.ids, cost.sent.vectors, cost.sent.gradients)
    return (*start, sharding, *map(readable_bytes, sizes))


def _markdown(lines: Sequence[tuple[str, ...]]) -> str:
    rule = ("---", "---:", "---:", "---", "---:", "---:", "---:", "---:")
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (HEADER, rule, *lines))
