"""`python -m experiments retrieval-codes`: the quality of a full ranking with item vectors in few bits.

The runs of experiments/studies/retrieval-codes/*.toml train full tables once per seed. Their final vectors of items are
encoded in every way of `ways`, and each way is evaluated by R@10 and R@50 over all items, with the users' vectors as
floats and encoded. Every run writes `<results>/retrieval-codes/<data set>/seed<seed>.json`; runs whose file is current
are skipped, and so is each way that the file of a run already holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from embcomp import artifact, retrieval
from embcomp.ops.kmeans import no_progress
from embcomp.retrieval.candidates import candidates
from embcomp.retrieval.rotations import of_products
from embcomp.torchrec.holders import stores_of
from experiments.config import RunConfig
from experiments.load import load
from experiments.report.collect import Stat
from experiments.runs.results import checkpoint_key
from experiments.studies import study
from experiments.tasks.clicks import ClickTask
from experiments.tasks.ranking import rank_metrics
from experiments.tasks.task import prepare
from experiments.training.train import Trainer

CONFIGS = Path(__file__).parent / "retrieval-codes"
EXPERIMENT = "retrieval-codes"
KIND = "vectors of a run"
SHARES = (0.10, 0.04, 0.06, 0.125, 0.03, 0.25)  # of the full bytes, those that are asked most of first
WIDTHS = (2, 4, 8, 16)  # that the full width is divided by, where vectors are cut
CHOSEN = (0.10, 0.04)  # shares for which `retrieval.choose` chooses a way
HOWS = ("float query", "codes")
METRICS = ("recall@10", "recall@50")
Progress = Callable[[int, int, str], None]


def run_all(results: Path, out: Path, console: Console, configs: Path = CONFIGS, pattern: str = "") -> None:
    """Train and encode all that no result file holds yet.

    Args:
        results: the folder of result files.
        out: the folder of checkpoints and vectors.
        console: the console that prints each way.
        configs: the folder of the runs.
        pattern: the pattern of the runs; only those whose `<data set>-seed<seed>` contains it.
    """
    torch.set_num_threads(1)
    for config in sorted(configs.glob("*.toml")):
        for run in load(config).runs():
            name = f"{run.data.name}-seed{run.seed}"
            if pattern in name:
                file = results / EXPERIMENT / run.data.name / f"seed{run.seed}.json"
                _run(run, _nested(configs / "nested" / config.name, run.seed), file, out / name, console)


def _nested(config: Path, seed: int) -> RunConfig | None:
    """Return the run of nested tables of a seed, if there is one."""
    runs = load(config).runs() if config.is_file() else iter(())
    return next((run for run in runs if run.seed == seed), None)


class _Judge:
    """The vectors of a run, and the measures of ways of coding them; vectors are only trained if a way needs them.

    Args:
        run: the run of full tables.
        nested: the run of tables that can be cut to their first columns, or None.
        out: the folder of vectors and checkpoints.
    """

    def __init__(self, run: RunConfig, nested: RunConfig | None, out: Path) -> None:
        self.run, self.nested, self.out, self.task = run, nested, out, prepare(run)

    @cached_property
    def vectors(self) -> tuple[Tensor, Tensor]:
        return vectors_of(self.run, self.task, self.out)

    @cached_property
    def nested_vectors(self) -> tuple[Tensor, Tensor]:
        assert self.nested is not None
        return vectors_of(self.nested, prepare(self.nested), self.out / "nested")

    def ways(self) -> dict[str, dict[str, Any]]:
        """Return all ways, by name."""
        return ways(*sizes(self.task), nested=self.nested is not None)

    def judged(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the bytes and metrics of one way."""
        users, items = self.nested_vectors if "nested" in settings else self.vectors
        return judged(self.task, users, items, settings)

    def choose(self, share: float) -> retrieval.Tried:
        """Return the way that `retrieval.choose` chooses with the valid split."""
        (users, items), (known, wanted) = self.vectors, pairs(self.task, "valid")
        nbytes, seed = int(share * items.nbytes), self.run.seed
        return retrieval.choose(items, nbytes, queries=users, wanted=wanted, known=known, seed=seed).tried[0]


def _run(run: RunConfig, nested: RunConfig | None, file: Path, out: Path, console: Console) -> None:
    judge = _Judge(run, nested, out)
    held = study.held(file) if study.is_current(file, run) else {}
    offered, choices = judge.ways(), held.get("chosen", {})
    kept_ways = {label: row for label, row in held.get("ways", {}).items() if label in offered}
    done = {label: row for label, row in kept_ways.items() if _is_same(offered[label], row, *sizes(judge.task))}
    done |= {label: row for label, row in held.get("ways", {}).items() if label in choices.values()}

    def keep(label: str, settings: dict[str, Any]) -> None:
        if label not in done:
            done[label] = judge.judged(settings)
        console.print(f"{run.data.name}, seed {run.seed}: {label} {said(done[label])}", highlight=False)
        values = {
            "experiment": EXPERIMENT, "dataset": run.data.name, "model": run.model.name, "seed": run.seed, "ways": done,
            "chosen": choices,
        }  # fmt: skip
        study.write(file, values, run)

    for label, settings in offered.items():
        if label not in done:
            keep(label, settings)
    for share in CHOSEN:
        if (name := f"{share:.0%}") not in choices:
            best = judge.choose(share)
            choices[name] = best.name
            keep(best.name, dict(best.settings))


def _is_same(settings: dict[str, Any], row: dict[str, Any], rows: int, dim: int) -> bool:
    """Return whether a row is of the codes of this release: sums of signs were larger before."""
    return "signs" not in settings or row["nbytes"] == retrieval.way(**settings).nbytes(rows, dim)


def said(row: dict[str, Any]) -> str:
    """Return one way in words."""
    return f"{row['share']:.1%}: " + ", ".join(
        f"{name} {value:.4f}" for name, value in row["metrics"]["float query"].items()
    )


def ways(rows: int, dim: int, nested: bool = False) -> dict[str, dict[str, Any]]:
    """Return every way that takes at most a share of the full bytes, by name; "full" is the vectors themselves.

    Args:
        rows: the number of vectors.
        dim: the width of the vectors.
        nested: True to include the first columns of nested tables.
    """
    full = 4 * rows * dim
    chosen: dict[str, dict[str, Any]] = {"full": {}}
    for share in SHARES[:2]:
        chosen |= candidates(rows, dim, share * full)
    for kind, key in (("svd", "floats"), ("nested", "nested"))[: 1 + nested]:
        chosen |= {f"floats, {kind}, width {dim // width}": {key: dim // width} for width in WIDTHS}
    for share in SHARES[2:]:
        chosen |= candidates(rows, dim, share * full)
    return chosen | {"learned signs": {"learn": dim}}


def sizes(task: Any) -> tuple[int, int]:
    """Return the number of items, and the width of their vectors."""
    return task.tables[1].num_embeddings, task.tables[1].embedding_dim


def vectors_of(run: RunConfig, task: Any, out: Path) -> tuple[Tensor, Tensor]:
    """Return the final vectors of users and items, which are trained once and kept."""
    path, key = out / "vectors.safetensors", checkpoint_key(run)
    if path.is_file():
        header, held = artifact.load(path, KIND)
        if header["key"] == key:
            return held["users"], held["items"]
    trainer = Trainer(task, folder=out / run.name, key=key, device=torch.device("cpu"), report=no_progress)
    trainer.fit()
    model = trainer.model.eval()
    with torch.no_grad():
        if isinstance(task, ClickTask):
            collection: Any = next(trainer.built.embeddings.children())
            users, items = stores_of(collection).values()
        else:
            users, items = model.vectors()  # type: ignore[operator]
    artifact.save(path, KIND, {"key": key}, {"users": users, "items": items})
    trainer.last.remove()
    return users.detach(), items.detach()


def pairs(task: Any, split: str) -> tuple[Tensor, Tensor]:
    """Return the pairs of user and item that are not ranked, and those that should be at the top, int64 [2, n] each."""
    if not isinstance(task, ClickTask):
        before = ("train",) if split == "valid" else ("train", "valid")
        return torch.cat([task.data.edges(part) for part in before], 1), task.data.edges(split)
    names = task.data.schema.feature_names

    def of(part: str, liked: bool) -> Tensor:
        frame = task.data.split(part).collect()
        frame = frame.filter(frame[task.data.schema.label] > 0) if liked else frame
        return torch.stack([torch.from_numpy(frame[name].to_numpy().copy()).long() for name in names])

    return of("train", False), of(split, True)


class Vectors(nn.Module):
    """The vectors of users and items, with the interface of a model for `rank_metrics`; scores are dot products."""

    def __init__(self, users: Tensor, items: Tensor) -> None:
        super().__init__()
        self.users, self.items = users, items

    def scorer(self, items: Tensor) -> Callable[[Tensor], Tensor]:
        chosen = self.items[items]
        return lambda users: self.users[users] @ chosen.T


def judged(task: Any, users: Tensor, items: Tensor, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the bytes and metrics of one way."""
    queries: dict[str, tuple[Tensor, Tensor]] = {}
    full = items.nbytes
    if not settings:
        nbytes, queries["float query"] = full, (users, items)
    elif "floats" in settings or "nested" in settings:
        nbytes, asking, decoded = cut(users, items, settings)
        queries["float query"] = (asking, decoded)
    else:
        if "learn" in settings:
            codes = retrieval.learn(items, signs=settings["learn"], epochs=20, seed=task.run.seed)
        else:
            asked = users if settings.get("rotation") == "svd" else None
            codes = retrieval.compress(items, queries=asked, seed=task.run.seed, **settings)
        nbytes, decoded = codes.nbytes, codes.decode()
        queries["float query"] = (users, decoded)
        queries["codes"] = (_coded(users, settings, task.run.seed), decoded)
    metrics: dict[str, dict[str, float]] = {}
    for how, (asking, asked_of) in queries.items():
        metrics[how] = {}
        for split in ("valid", "test") if how == HOWS[0] else ("test",):
            known, wanted = pairs(task, split)
            every = rank_metrics(
                Vectors(asking, asked_of), known, wanted, len(items), task.run.training.eval_batch_size
            )
            metrics[how] |= {f"{split}/{metric}": every[metric] for metric in METRICS}
    decoded = queries["float query"][1]
    decoded = F.pad(decoded, (0, items.shape[1] - decoded.shape[1]))
    lost = float(F.mse_loss(decoded, items) / items.square().mean())
    return {"nbytes": nbytes, "share": nbytes / full, "lost": lost, "metrics": metrics, "settings": settings}


def cut(users: Tensor, items: Tensor, settings: dict[str, Any]) -> tuple[int, Tensor, Tensor]:
    """Return the bytes of float vectors of fewer columns, and the vectors of users and items that stand for them.

    Args:
        users: the vectors of users, float32 [m, dim].
        items: the vectors of items, float32 [n, dim].
        settings: "nested", the number of first columns to keep; or "floats", that of the directions that keep most of
            the products of users and items, whose matrix is counted.
    """
    if "nested" in settings:
        width = settings["nested"]
        return 4 * len(items) * width, users[:, :width], items[:, :width]
    width = settings["floats"]
    back, onto = of_products(items, users, width, seed=0)
    return 4 * (len(items) + items.shape[1]) * width, users, items @ onto.T @ back


def _coded(users: Tensor, settings: dict[str, Any], seed: int) -> Tensor:
    """Return the users' vectors, encoded separately in the same way as the items'."""
    if "learn" in settings:
        return retrieval.learn(users, signs=settings["learn"], epochs=5, seed=seed).decode()
    return retrieval.compress(users, seed=seed, **settings).decode()


def write_markdown(results: Path, folder: Path) -> Path:
    """Write a table for each data set: the share of the full vectors' recall that each way keeps, means over seeds."""
    lines = [
        "Item vectors of trained full tables in few bits, all items ranked. Kept: recall on the test split as a share "
        "of that of the float vectors, in percent; lost: square error as a share of the squares. Coded users are coded "
        "separately in the same way. Floats, svd: float vectors along the directions that keep most of the products of "
        "users and items; floats, nested: the first columns of tables that were trained for all these widths, with the "
        "hardest of four negatives for each width. MovieLens-1M has one held-out split, which is valid and test. "
        "Mean ± standard deviation over seeds. Written by `python -m "
        "experiments retrieval-codes`.",
    ]
    header = ["bytes", "way", "lost", "R@10 kept", "R@50 kept", "users coded: R@10", "R@50", "on valid: R@10", "R@50"]
    header += ["seeds"]
    files = list(study.read(results, EXPERIMENT))
    for dataset in dict.fromkeys(file["dataset"] for file in files):
        of_data = [file for file in files if file["dataset"] == dataset]
        full = [file["ways"]["full"]["metrics"]["float query"] for file in of_data]
        shown = ", ".join(f"{m} {Stat.of([each[f'test/{m}'] for each in full])}" for m in METRICS)
        lines += ["", f"## {dataset}, {of_data[0]['model']}", "", f"The float vectors: {shown}.", ""]
        lines += study.table(header, "rl" + "r" * (len(header) - 2), _rows(of_data, full))
        lines += _chosen(of_data, full)
    return study.write_page(folder, EXPERIMENT, lines)


def _rows(files: list[dict[str, Any]], full: list[dict[str, float]]) -> Iterator[list[str]]:
    """Yield the cells of each way, from the result files of a data set and the recall of their float vectors."""
    shares = {label: row["share"] for file in files for label, row in file["ways"].items() if label != "full"}
    for label in sorted(shares, key=lambda each: -shares[each]):
        there = [(file["ways"][label], base) for file, base in zip(files, full, strict=True) if label in file["ways"]]
        lost = sum(row["lost"] for row, _ in there) / len(there)
        yield [
            f"{shares[label]:.1%}",
            label,
            f"{lost:.3f}",
            *(
                kept([row["metrics"][how][f"{split}/{metric}"] / base[f"{split}/{metric}"] for row, base in there])
                if all(how in row["metrics"] for row, _ in there)
                else "–"
                for split, how in (("test", HOWS[0]), ("test", HOWS[1]), ("valid", HOWS[0]))
                for metric in METRICS
            ),
            str(len(there)),
        ]


def _chosen(files: list[dict[str, Any]], full: list[dict[str, float]]) -> Iterator[str]:
    """Yield a line for each share of the bytes: what the ways that `retrieval.choose` chose keep."""
    for share in dict.fromkeys(share for file in files for share in file.get("chosen", ())):
        there = [(file, base) for file, base in zip(files, full, strict=True) if share in file.get("chosen", ())]
        names = [file["chosen"][share] for file, _ in there]
        tested = [
            [f["ways"][name]["metrics"][HOWS[0]][f"test/{metric}"] / base[f"test/{metric}"] for metric in METRICS]
            for (f, base), name in zip(there, names, strict=True)
        ]
        both = " and ".join(kept(list(each)) for each in zip(*tested, strict=True))
        yield ""
        yield (
            f"Chosen at {share} by `retrieval.choose` with the valid split: {' / '.join(dict.fromkeys(names))}, which "
            f"keeps {both} of R@10 and R@50 on the test split ({len(there)} seeds)."
        )


def kept(shares: list[float]) -> str:
    """Format a percentage, with the deviation over seeds if there are several.

    >>> kept([0.99, 1.01])
    '100.0 ± 1.4'
    """
    values = 100 * torch.tensor(shares, dtype=torch.float64)
    return f"{values.mean():.1f}" + (f" ± {values.std():.1f}" if len(shares) > 1 else "")
