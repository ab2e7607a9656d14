"""The files of a report of experiments."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments.files import write_text
from experiments.report import conclusions, pictures, planned, sharded, tables, third_party
from experiments.report.collect import Experiment, collect

_INDEX = "# Results\n\nMade from `experiments/results` by `python -m experiments report --markdown`.\n\n"


def write_html(results: Path, path: Path, names: Sequence[str] | None = None, title: str = "Experiments") -> Path:
    """Write one self-contained page.

    Raises:
        InputError: see `collect`.
    """
    write_text(path, _render("page.html.j2", collect(results, names), title))
    return path


def write_markdown(results: Path, folder: Path, names: Sequence[str] | None = None) -> Path:
    """Write `<experiment>.md` for each experiment, with its pictures as SVG files, and `index.md` with links to all.

    If all experiments are written, `sharded.md`, `third-party.md`, `conclusions.md` and `planned.md` are written, too.

    Raises:
        InputError: see `collect`.
    """
    experiments = collect(results, names)
    for experiment in experiments:
        drawn = [pictures.overview(experiment)]
        drawn += [picture for section in experiment.sections for picture in pictures.sweeps(section)]
        drawn += [pictures.slices(section) for section in experiment.sections]
        for picture in drawn:
            if picture:
                write_text(folder / f"{picture.name}.svg", picture.svg)
        write_text(folder / f"{experiment.name}.md", _render("page.md.j2", [experiment], experiment.name))
    if not names:
        sharded.write(results, folder)
        third_party.write(results, folder)
        conclusions.write(results, folder)
        planned.write(results, folder)
        said = {e.name: f": {', '.join(s.title for s in e.sections)}" for e in experiments}
        # Pages that other commands have written into the folder are linked too.
        pages = {path.stem for path in folder.glob("*.md")} - {"index"}
        links = [f"- [{name}]({name}.md){said.get(name, '')}\n" for name in sorted(pages)]
        write_text(folder / "index.md", _INDEX + "".join(links))
    return folder


def _render(template: str, experiments: Sequence[Experiment], title: str) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=template.endswith("html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = lambda svg: "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
    environment.globals.update(pictures=pictures, tables=tables)
    return environment.get_template(template).render(experiments=experiments, title=title).rstrip() + "\n"
