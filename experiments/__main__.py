"""The command line, `python -m experiments COMMAND`, with one function for each command."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from experiments.arguments import device_of, matches, options_of, seeds_of
from experiments.errors import InputError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console()

Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import", help="A module, or a file mine.py, with your methods, models, readers, loggers; repeatable."
    ),
]
Results = Annotated[Path | None, typer.Option(help="Folder of result files, by default experiments/results.")]
Seeds = Annotated[str | None, typer.Option(help="Only these seeds: 0,1,2.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of torch in each job.")]


@app.command()
def run(
    paths: Annotated[list[Path], typer.Argument(help="TOML files, folders of them, or names in experiments/configs.")],
    seeds: Seeds = None,
    filter: Annotated[str, typer.Option(help="Only runs whose name matches this pattern.")] = "*",
    force: Annotated[bool, typer.Option(help="Run again even if the result is current.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 1,
    threads: Threads = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    results: Results = None,
    out: Annotated[Path, typer.Option(help="Folder of checkpoints and TensorBoard scalars.")] = Path("out"),
    checkpoint_seconds: Annotated[float, typer.Option(min=0, help="Time between checkpoints.")] = 30.0,
    dry_run: Annotated[bool, typer.Option(help="List the runs without training.")] = False,
    log: Annotated[
        list[str] | None, typer.Option(help="tensorboard (the default), mlflow, wandb or one of your own; repeatable.")
    ] = None,
    imports: Imports = None,
) -> None:
    """Train experiments; runs whose result is current are skipped, a killed run is resumed.

    Under `torchrun --nproc-per-node N -m experiments run ...` N processes train each run together.
    """
    from experiments import plugins
    from experiments.config.options import hint
    from experiments.load import find, load
    from experiments.loggers import LOGGERS
    from experiments.processes import distributed

    plugins.load(imports or ())
    loggers = tuple(log or ["tensorboard"])
    for name in loggers:
        if name not in LOGGERS:
            raise InputError(f"--log {name}: unknown logger{hint(name, LOGGERS)}")
    chosen = seeds_of(seeds)
    experiments = [load(path) for path in find(paths)]
    runs = [run for experiment in experiments for run in experiment.runs()]
    runs = [run for run in runs if (chosen is None or run.seed in chosen) and matches(run.name, filter)]
    if not runs:
        raise InputError(f"no run matches --filter {filter!r}" + (f" and --seeds {seeds}" if seeds else ""))

    from experiments.runs import results as files
    from experiments.runs.runner import Settings, forget, run_all
    from experiments.tasks.task import preflight

    folder = results or files.RESULTS
    device = distributed.start(device_of(device))
    console.quiet = distributed.rank() > 0
    if jobs > 1 and distributed.size() > 1:
        raise InputError(f"--jobs {jobs}: the processes of torchrun train one run at a time; leave --jobs out")
    current = distributed.agreed([not force and files.is_current(run, folder) for run in runs])
    pending = [run for run, done in zip(runs, current, strict=True) if not done]
    if len(pending) < len(runs):
        console.print(f"{len(runs) - len(pending)} of {len(runs)} runs are current")
    if dry_run:
        for each in pending:
            console.print(f"{each.experiment}/{each.name}", highlight=False)
        return
    prepared = preflight(pending)
    settings = Settings(folder, out, device, threads, checkpoint_seconds, loggers, tuple(imports or ()))
    if force and distributed.rank() == 0:
        for each in pending:
            forget(each, settings)
    try:
        summary = run_all(pending, settings, console, min(jobs, max(len(pending), 1)), prepared)
        distributed.stop()
    except distributed.Lost as error:
        Console(stderr=True).print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        console.print("stopped; the same command continues from the last checkpoint")
        raise typer.Exit(130) from None
    # A budget that some method cannot serve belongs to a sweep; one that none can is a mistake.
    if summary.bad_input or (summary.infeasible and not summary.done):
        raise typer.Exit(2)
    if summary.failed:
        raise typer.Exit(1)


@app.command()
def report(
    names: Annotated[list[str] | None, typer.Argument(help="Experiments, by default all.")] = None,
    results: Results = None,
    out: Annotated[Path, typer.Option(help="Folder of the HTML page.")] = Path("out/report"),
    markdown: Annotated[
        Path | None, typer.Option(help="Write Markdown and SVG files for the docs here instead.")
    ] = None,
) -> None:
    """Write tables and pictures of all results: one self-contained HTML page."""
    from experiments.report import leaderboard_pages, write_html, write_markdown
    from experiments.runs.results import RESULTS

    folder = results or RESULTS
    path = write_markdown(folder, markdown, names) if markdown else write_html(folder, out / "index.html", names)
    written = [path] if names else [path, *leaderboard_pages.write_all(folder, out, markdown)]
    for path in written:
        console.print(f"wrote {path}", highlight=False)


@app.command()
def results(
    names: Annotated[list[str] | None, typer.Argument(help="Experiments, by default all.")] = None,
    results: Results = None,
    out: Annotated[list[Path] | None, typer.Option("--out", "-o", help="FILE.csv or FILE.parquet; repeatable.")] = None,
) -> None:
    """Write all results as one table, a row for each run: as CSV on the terminal, or as CSV and parquet files."""
    from experiments.runs.flat import save, table
    from experiments.runs.results import RESULTS

    frame = table(results or RESULTS, names)
    if not out:
        typer.echo(frame.write_csv(), nl=False)
    for path in out or ():
        save(frame, path)
        console.print(f"wrote {path}: {len(frame)} runs, {frame.width} columns", highlight=False)


@app.command()
def export(
    paths: Annotated[list[Path], typer.Argument(help="TOML files, folders of them, or names in experiments/configs.")],
    seeds: Seeds = None,
    filter: Annotated[str, typer.Option(help="Only runs whose name matches this pattern.")] = "*",
    force: Annotated[bool, typer.Option(help="Export again even if the result is current.")] = False,
    threads: Threads = 1,
    results: Results = None,
    out: Annotated[Path, typer.Option(help="Folder of the checkpoints of the runs.")] = Path("out"),
    markdown: Annotated[Path | None, typer.Option(help="Write the table for the docs into this folder.")] = None,
    imports: Imports = None,
) -> None:
    """Export the best weights of runs in several dtypes and evaluate the exports; unfinished runs are trained first."""
    from experiments import plugins
    from experiments.load import find, load
    from experiments.runs.results import RESULTS
    from experiments.runs.runner import Settings
    from experiments.studies.export import export_all, write_markdown

    plugins.load(imports or ())
    chosen, folder = seeds_of(seeds), results or RESULTS
    runs = [run for path in find(paths) for run in load(path).runs()]
    runs = [run for run in runs if (chosen is None or run.seed in chosen) and matches(run.name, filter)]
    if not runs:
        raise InputError(f"no run matches --filter {filter!r}" + (f" and --seeds {seeds}" if seeds else ""))
    failed = export_all(runs, Settings(folder, out, threads=threads), console, force)
    if markdown is not None:
        console.print(f"wrote {write_markdown(folder, markdown)}", highlight=False)
    if failed:
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("out/demo"),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs side by side, by default two if there are enough cores.")
    ] = None,
) -> None:
    """Train full and compressed tables in a few minutes, and show the bytes saved and the loss of quality."""
    from experiments.studies.demo import run_demo

    console.print(f"wrote {run_demo(out, jobs or min(2, os.cpu_count() or 1), console)}", highlight=False)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="A module of experiments/bench; without it, their names.")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows to this file.")] = None,
    option: Annotated[list[str] | None, typer.Option("--option", "-o", help="KEY=VALUE for the bench.")] = None,
) -> None:
    """Measure ratios of paired timings, with their spread."""
    from experiments.bench import check_options, find, names, show
    from experiments.files import write_json

    if not name:
        console.print("\n".join(names()))
        return
    call, options = find(name), options_of(option or [])
    check_options(name, options)
    if json_file is not None and not json_file.parent.is_dir():
        raise InputError(f"--json {json_file}: there is no folder {json_file.parent}")
    rows = call(console, **options)
    show(console, name, rows)
    if json_file is not None:
        write_json(json_file, [asdict(row) for row in rows])
        console.print(f"wrote {json_file}", highlight=False)


@app.command()
def choose(
    paths: Annotated[list[Path], typer.Argument(help="TOML files, or names in experiments/configs: what to train.")],
    nbytes: Annotated[list[str], typer.Option(help="A budget, such as 10% or 50000; repeatable.")],
    count: Annotated[list[str] | None, typer.Option(help="served (the default) or training; repeatable.")] = None,
    level: Annotated[list[int] | None, typer.Option(min=1, max=3, help="1, 2 (the default) or 3; repeatable.")] = None,
    seeds: Seeds = None,
    force: Annotated[bool, typer.Option(help="Choose and train again even if the result is current.")] = False,
    again: Annotated[bool, typer.Option(help="Choose again, and train only where the choice is another.")] = False,
    ranked: Annotated[
        bool, typer.Option(help="Give level 1 the ranking of the features of the training split.")
    ] = False,
    threads: Threads = 1,
    results: Results = None,
    out: Annotated[Path, typer.Option(help="Folder of checkpoints.")] = Path("out"),
) -> None:
    """Choose a method and a size for every table of an experiment, and train with this choice."""
    from experiments.load import find, load
    from experiments.runs import results as files
    from experiments.runs.runner import Settings
    from experiments.studies.choose import run_all_choices

    counts = count or ["served"]
    for each in counts:
        if each not in ("served", "training"):
            raise InputError(f"--count {each}: served or training")
    chosen = seeds_of(seeds)
    runs = [run for path in find(paths) for run in load(path).runs() if run.method.method == "Full"]
    runs = [run for run in runs if (chosen is None or run.seed in chosen) and not run.method.from_trained]
    if not runs:
        raise InputError(f"no run of full tables in {', '.join(map(str, paths))}: add a method Full")
    settings = Settings(results or files.RESULTS, out, threads=threads, loggers=())
    if run_all_choices(runs, nbytes, counts, level or [2], settings, console, force, again, ranked):
        raise typer.Exit(1)


@app.command()
def parity(
    results: Results = None,
    processes: Annotated[int, typer.Option(min=1)] = 2,
    steps: Annotated[int, typer.Option(min=1)] = 20,
    force: Annotated[bool, typer.Option(help="Measure again the rows that the file holds.")] = False,
) -> None:
    """Train every method over several processes and in one, and write the differences at the end."""
    from experiments.studies.parity import TOLERANCE, run_all

    path, rows = run_all(results, console, processes, steps, force)
    worst = max(rows, key=lambda row: row.worst)
    console.print(f"wrote {path}: {len(rows)} cases, the largest difference {worst.worst:.1e}", highlight=False)
    if worst.worst > TOLERANCE:
        console.print(f"above {TOLERANCE:.0e}: {worst}", highlight=False)
        raise typer.Exit(1)


@app.command()
def tokenizers(
    results: Results = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table for the docs into this folder.")] = None,
    force: Annotated[bool, typer.Option(help="Fit again even if the result is current.")] = False,
) -> None:
    """Fit and evaluate the tokenizers of experiments/studies/tokenizers.toml on real content vectors."""
    from experiments.runs.results import RESULTS
    from experiments.studies.tokenizers import run_all, write_markdown

    run_all(results or RESULTS, console, force)
    if markdown is not None:
        console.print(f"wrote {write_markdown(results or RESULTS, markdown)}", highlight=False)


@app.command()
def kills(
    number: Annotated[int, typer.Option(min=1, help="The number of kills.")] = 20,
    epochs: Annotated[int, typer.Option(min=1, help="The number of epochs.")] = 2,
    results: Results = None,
) -> None:
    """Kill a sharded training at random moments, and compare its result with that of an undisturbed one."""
    from experiments.runs.results import RESULTS
    from experiments.studies.kills import run_all

    def report(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    path, values = run_all(results or RESULTS, number, epochs, report)
    said = "equal" if values["equal"] else "DIFFERENT"
    console.print(f"{said} after {number} kills; wrote {path}", highlight=False)
    if not values["equal"]:
        raise typer.Exit(1)


@app.command()
def stability(
    results: Results = None,
    out: Annotated[Path, typer.Option(help="Folder of checkpoints.")] = Path("out/stability"),
    filter: Annotated[str, typer.Option(help="Only runs whose name holds this.")] = "",
    markdown: Annotated[Path | None, typer.Option(help="Write the table for the docs into this folder.")] = None,
) -> None:
    """Train the runs of studies/stability.toml on an earlier and a later window, and compare their predictions."""
    from experiments.runs.results import RESULTS
    from experiments.studies.stability import run_all, write_markdown

    run_all(results or RESULTS, out, console, pattern=filter)
    if markdown is not None:
        console.print(f"wrote {write_markdown(results or RESULTS, markdown)}", highlight=False)


@app.command("retrieval-codes")
def retrieval_codes(
    results: Results = None,
    out: Annotated[Path, typer.Option(help="Folder of checkpoints and vectors.")] = Path("out/retrieval-codes"),
    filter: Annotated[str, typer.Option(help="Only runs whose <data set>-seed<seed> holds this.")] = "",
    markdown: Annotated[Path | None, typer.Option(help="Write the tables for the docs into this folder.")] = None,
) -> None:
    """Train the runs of studies/retrieval-codes, encode their item vectors in every way, and rank all items."""
    from experiments.runs.results import RESULTS
    from experiments.studies.retrieval_codes import run_all, write_markdown

    run_all(results or RESULTS, out, console, pattern=filter)
    if markdown is not None:
        console.print(f"wrote {write_markdown(results or RESULTS, markdown)}", highlight=False)


@app.command()
def nightly(
    results: Results = None,
    out: Annotated[Path, typer.Option(help="Folder of models and of what they publish.")] = Path("out/nightly"),
    filter: Annotated[str, typer.Option(help="Only methods whose label holds this.")] = "",
    markdown: Annotated[Path | None, typer.Option(help="Write the tables for the docs into this folder.")] = None,
) -> None:
    """Retrain a model of news for seven nights, each from the night before, beside a training from nothing."""
    from experiments.runs.results import RESULTS
    from experiments.studies.nightly import run_all, write_markdown

    run_all(results or RESULTS, out, console, pattern=filter)
    if markdown is not None:
        console.print(f"wrote {write_markdown(results or RESULTS, markdown)}", highlight=False)


@app.command()
def text(dataset: Annotated[str, typer.Argument(help="ml-1m")]) -> None:
    """Make the content vectors of a data set's items from their text, once."""
    from experiments.tasks.text import embed

    console.print(f"vectors in {embed(dataset, console)}", highlight=False)


def main() -> None:
    """Run the command line; bad input ends with one message and exit code 2."""
    try:
        app()
    except InputError as error:
        Console(stderr=True).print("[red]error:[/] ", end="")
        Console(stderr=True).print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
