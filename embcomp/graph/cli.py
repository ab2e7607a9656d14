"""The command `embcomp graphhash`: from files of interactions to the maps of users and items."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer

from embcomp.formats import grouped, text_table
from embcomp.graph.cluster_map import ClusterMap
from embcomp.graph.clustering import Clusters, cluster
from embcomp.graph.edges import interactions
from embcomp.graph.minhash import sample_neighbours
from embcomp.graph.partition import Algorithm, Objective

app = typer.Typer(add_completion=False, invoke_without_command=True, context_settings={"allow_interspersed_args": True})


@app.callback()
def graphhash(
    edges: Annotated[list[str], typer.Argument(help="Parquet files of interactions; globs too.")],
    rows: Annotated[int | None, typer.Option(help="Rows of both tables together, split as the graph has it.")] = None,
    user_rows: Annotated[int | None, typer.Option(help="Rows for users; with --item-rows instead of --rows.")] = None,
    item_rows: Annotated[int | None, typer.Option(help="Rows for items.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for users.map, items.map, sizes.svg.")] = Path(
        "clusters"
    ),
    user: Annotated[str, typer.Option(help="Column of user ids.")] = "user_id",
    item: Annotated[str, typer.Option(help="Column of item ids.")] = "item_id",
    weight: Annotated[str | None, typer.Option(help="Column of weights.")] = None,
    label: Annotated[str | None, typer.Option(help="Column of labels: only positive ones join.")] = None,
    min_label: Annotated[float | None, typer.Option(help="The least label that joins.")] = None,
    time: Annotated[str | None, typer.Option(help="Column of times.")] = None,
    half_life: Annotated[
        str | None,
        typer.Option(help="Time after which an interaction weighs half: 7d or 12h for datetimes, else a number."),
    ] = None,
    num_users: Annotated[int | None, typer.Option(help="Ids of users, if more than occur.")] = None,
    num_items: Annotated[int | None, typer.Option(help="Ids of items, if more than occur.")] = None,
    objective: Annotated[str, typer.Option(help=" | ".join(get_args(Objective)))] = "bipartite_modularity",
    algorithm: Annotated[str, typer.Option(help=" | ".join(get_args(Algorithm)))] = "leiden",
    backend: Annotated[str, typer.Option(help="igraph, networkx, or a back end of networkx.")] = "igraph",
    hashes: Annotated[
        int | None,
        typer.Option(help="Keep so many neighbours of each id while the files stream, for graphs beyond memory."),
    ] = None,
    unseen_rows: Annotated[int, typer.Option(help="Rows of each table to keep for unseen ids.")] = 0,
    seed: Annotated[int, typer.Option(help="Another seed gives other clusters.")] = 0,
) -> None:
    """Cluster users and items that click together into an exact number of rows."""
    try:
        wanted = _rows(rows, user_rows, item_rows)
        columns: dict[str, Any] = {"weight": weight, "label": label, "min_label": min_label, "time": time}
        span = None if half_life is None else _span(half_life)
        both: dict[str, Any] = {"user": user, "item": item, "num_users": num_users, "num_items": num_items}
        if hashes is None:
            graph = interactions(edges, half_life=span, **both, **columns)
        else:
            if given := [name for name, value in {**columns, "half_life": span}.items() if value is not None]:
                raise ValueError(f"--hashes keeps neighbours, whatever their {', '.join(given)}: leave these out")
            graph = sample_neighbours(edges, hashes, seed=seed, **both)
        settings: dict[str, Any] = {"objective": objective, "algorithm": algorithm, "backend": backend}
        clusters = cluster(graph, wanted, unseen_rows=unseen_rows, seed=seed, **settings)
        clusters.save(out)
        draw_sizes(clusters, out / "sizes.svg")
    except (ValueError, OSError) as error:
        typer.echo(f"embcomp graphhash: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(summary(clusters))
    typer.echo(f"{grouped(len(graph))} edges, quality {clusters.quality:.4f} at resolution {clusters.resolution:.4g}")
    typer.echo(f"wrote {out / 'users.map'}, {out / 'items.map'}, {out / 'sizes.svg'}")


def _rows(rows: int | None, user_rows: int | None, item_rows: int | None) -> int | tuple[int, int]:
    if rows is not None and user_rows is None and item_rows is None:
        return rows
    if rows is None and user_rows is not None and item_rows is not None:
        return user_rows, item_rows
    raise ValueError("give --rows, or both --user-rows and --item-rows")


def _span(text: str) -> float | timedelta:
    """Parse a number, or a number with a unit.

    Example:
        >>> _span("0.5"), _span("36h")
        (0.5, datetime.timedelta(days=1, seconds=43200))
    """
    unit = {"d": "days", "h": "hours"}.get(text[-1:])
    try:
        return timedelta(**{unit: float(text[:-1])}) if unit else float(text)
    except ValueError:
        raise ValueError(f"--half-life must be a number, or one with d or h for days or hours, got {text!r}") from None


def summary(clusters: Clusters) -> str:
    """Return a text table of ids, rows, sizes of clusters, and bytes of the maps.

    Example:
        >>> import numpy as np
        >>> from embcomp.graph import cluster, interactions
        >>> print(summary(cluster(interactions((np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 2]))), rows=4)))
        table  ids  unseen  rows  largest  median  alone  map bytes
        users    3       0     2        2       1      1         12
        items    3       0     2        2       1      1         12
    """
    lines = []
    for name, cluster_map in (("users", clusters.users), ("items", clusters.items)):
        sizes = cluster_map.sizes()
        numbers = (
            cluster_map.num_ids, cluster_map.num_ids - int(sizes.sum()), cluster_map.rows,
            int(sizes.max()), int(sizes.median()), int((sizes == 1).sum()), cluster_map.nbytes,
        )  # fmt: skip
        lines.append((name, *map(grouped, numbers)))
    return text_table(("table", "ids", "unseen", "rows", "largest", "median", "alone", "map bytes"), lines, left=1)


def draw_sizes(clusters: Clusters, path: Path) -> None:
    """Draw the number of ids of each row, largest first, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="rows, largest first", ylabel="ids that share the row")
    for name, cluster_map, colour in (("users", clusters.users, "#1f77b4"), ("items", clusters.items, "#d95f02")):
        sizes = _sorted_sizes(cluster_map)
        axes.step(
            np.arange(1, sizes.size + 1), sizes, where="mid", color=colour, label=f"{name}, {cluster_map.rows:,} rows"
        )
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def _sorted_sizes(found: ClusterMap) -> np.ndarray:
    sizes = found.sizes().numpy()
    return np.sort(sizes[sizes > 0])[::-1]
