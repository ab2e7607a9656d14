"""`python -m experiments choose`: plans for a byte budget, and the results of training with the methods chosen.

For each seed of the full tables the planner gets the inputs of its level (`embcomp.choose`): 1, sizes and counts, and
with `--ranked` what `embcomp.rank_features` says of the clicks; 2, also the trained full tables and a part of the valid
split; 3, also short trainings. Models are then trained from scratch with the chosen methods. Content of ids is given
where held-out clicks read ids that are new. Each run writes a result file like any other, with the choice and its time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import scipy.optimize  # noqa: F401  (imported before a plan is timed)
import torch
from rich.console import Console
from torch import nn

import embcomp
from embcomp.formats import parse_nbytes
from embcomp.planner.choice import TableChoice, kind
from embcomp.planner.features_ranking import FeatureRanking
from experiments.config import MethodConfig, RunConfig
from experiments.config.inputs import edges_of
from experiments.config.trained import VECTORS
from experiments.errors import InputError
from experiments.files import write_json
from experiments.runs import results as files
from experiments.runs.runner import Settings, forget, run_all, trained
from experiments.tasks.by_table import ByTable
from experiments.tasks.clicks import ClickTask
from experiments.tasks.content import ClickContent, codes_of
from experiments.tasks.names import table_name
from experiments.tasks.retrieval import RetrievalTask
from experiments.tasks.sizing import BuiltModel
from experiments.tasks.task import prepare
from experiments.training.optim import make_optimizers
from experiments.training.train import Trainer

PLANNING = 0.2
"""The share of the time of a full training for the plan."""

_HELD_OUT = 8  # batches
_ROWS = 4096  # of a batch
_NEW = 0.01  # of the look-ups, from which on the planner is given content
_CODES = {"tokenizer": "ResidualKMeans", "levels": 5, "codebook_size": 32}

Level = Literal[1, 2, 3]


def run_all_choices(
    full: Sequence[RunConfig],
    budgets: Sequence[str],
    counts: Sequence[str],
    levels: Sequence[int],
    settings: Settings,
    console: Console,
    force: bool = False,
    again: bool = False,
    ranked: bool = False,
) -> int:
    """Plan and train the runs that are not current; return how many failed.

    Args:
        full: the runs of the full tables, one for each seed.
        budgets: the budgets, as `embcomp.choose` takes them.
        counts: the bytes to count, "served" or "training".
        levels: the levels, 1, 2, 3.
        settings: the settings of the runner.
        console: the console for messages.
        force: True to do current runs again.
        again: True to plan again for current runs, and to train those whose plan is another.
        ranked: True to give level 1 the ranking of the features of the training split.
    """
    cells = [(level, count, budget) for level in levels for count in counts for budget in budgets]
    wanted = [chosen_run(run, budget, count, level, ranked) for run in full for level, count, budget in cells]
    pending = [run for run in wanted if force or again or not files.is_current(run, settings.results)]
    if len(pending) < len(wanted):
        console.print(f"{len(wanted) - len(pending)} of {len(wanted)} choices are current")
    missing = [run for run in full if trained(run, settings) is None and any(_is_of(each, run) for each in pending)]
    if missing:
        run_all(missing, settings, console)
    failed = 0
    for run in pending:
        whole = next(each for each in full if _is_of(run, each))
        if trained(whole, settings) is None:
            failed += 1
            continue
        if force:
            forget(run, settings)
        try:
            said = carry_out(run, whole, settings, again)
        except Exception:  # of one run; the others may still be good
            failed, said = failed + 1, traceback.format_exc()
        console.print(f"{run.experiment}/{run.name}: {said}", highlight=False, markup=False)
    return failed


def chosen_run(full: RunConfig, budget: str, count: str, level: int, ranked: bool = False) -> RunConfig:
    """Return the run that trains a choice, with a name and a key like any other."""
    ranked = ranked and level == 1
    method = MethodConfig(
        method="choose",
        options={"level": level, "count": count, **({"ranked": True} if ranked else {})},
        label=f"choose, level {level}{', ranked' if ranked else ''}, {count}",
    )
    share = budget.strip().removesuffix("%")
    try:
        size = int(budget) if budget.isdecimal() else budget
        parse_nbytes(size, 1 << 60)  # says what is wrong with a text
        given = ("share", float(share) / 100) if share != budget.strip() else ("nbytes", parse_nbytes(size, None))
    except (TypeError, ValueError) as error:
        raise InputError(f"--nbytes {budget}: {error}") from error
    return dataclasses.replace(full, method=method, budget=given)


def carry_out(run: RunConfig, full: RunConfig, settings: Settings, again: bool = False) -> str:
    """Choose, train and write the result file; with `again`, do not train what the file is of."""
    torch.set_num_threads(settings.threads)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    device = torch.device(settings.device)
    task: Any = prepare(full)
    choice, share = _chosen(task, run, full, settings)
    methods = {table.name: chosen.method for table, chosen in zip(task.tables, choice.tables, strict=True)}
    method = ByTable(methods=methods)
    rows = sum(store.rows for store in method.sizes(task.tables).stores.values())
    task = dataclasses.replace(task, run=run, method=method, rows=rows)
    planned = {
        "planning": {"seconds": round(choice.seconds, 2), "of_full_training": round(share, 4), "loss": choice.loss},
        "choice": {t.name: _line(t) for t in choice.tables},
    }
    path = files.path_of(run, settings.results)
    if again and files.is_current(run, settings.results):
        values = json.loads(path.read_text())
        if values["method_config"] == json.loads(json.dumps(method.config(without=[VECTORS]))):
            write_json(path, values | planned)
            return f"planned in {share:.0%}, as before"
    plan = json.dumps(method.config())  # probes within a time limit may give another plan than before
    trainer = Trainer(
        task,
        folder=settings.work / "runs" / run.experiment / run.name,
        key=hashlib.sha256(f"{files.checkpoint_key(run)} {plan}".encode()).hexdigest()[:16],
        device=device,
        report=lambda done, total, text: None,
        checkpoint_seconds=settings.checkpoint_seconds,
    )
    outcome = trainer.fit()
    files.write_result(task, outcome, settings.results, device)
    trainer.last.remove()
    write_json(path, json.loads(path.read_text()) | planned)
    shown = "  ".join(f"{name} {outcome.metrics[f'test/{name}']:.4f}" for name in task.shown)
    return f"{shown}  {outcome.nbytes:,} B served, {outcome.training_nbytes:,} B training; planned in {share:.0%}"


def _chosen(task: Any, run: RunConfig, full: RunConfig, settings: Settings) -> tuple[embcomp.Choice, float]:
    """Return the choice, and its time as a share of the full training's: of the processor, whatever else runs.

    Imports count in neither.
    """
    options = run.method.options
    level, count = options["level"], options["count"]
    kind_, value = run.budget or ("share", 1.0)
    nbytes = int(value * task.full_nbytes) if kind_ == "share" else int(value)
    given: dict[str, Any] = {"count": count, "counts": _named(task, task.training().counts()), "seed": run.seed}
    if codes := _content(task, given["counts"]):
        given["content"] = codes
    if isinstance(task, RetrievalTask):
        given["edges"], given["sides"] = edges_of(task.training()), {"user_id": "users", "item_id": "items"}
    result = json.loads(files.path_of(full, settings.results).read_text())
    whole = max(0.05, result["seconds"])  # written in tenths: a training of toys takes 0.0
    started = time.process_time()
    if level == 1:
        if options.get("ranked"):
            given["worth"] = _ranking(task)
        choice = embcomp.choose(task.tables, nbytes, **given)
        return choice, (time.process_time() - started) / whole
    built = task.model(torch.device("cpu"))
    best = trained(full, settings)
    if best is None:
        raise InputError(f"{full.name}: the full tables are not trained")
    best.load(built.model)
    plain = task.uncompressed(built)
    names = {}
    if isinstance(task, RetrievalTask):
        names = {"user_id": "users", "item_id": "items"}
        given["counts"] = {names[name]: counts for name, counts in given["counts"].items()}
        given["sides"] = {"users": "users", "items": "items"}
    train = None
    if level == 3:
        steps = result["epochs"] * task.steps
        train = _trainer(task, steps)
    started = time.process_time()
    choice = embcomp.choose(
        plain.model,
        nbytes,
        **_data(task),
        seconds=PLANNING / (3 if train else 2) * whole,
        train=train,
        effort=PLANNING / 8,
        **given,
    )
    return choice, (time.process_time() - started) / whole


def _ranking(task: Any) -> FeatureRanking:
    """Return the ranking of the features of the training split, by table."""
    if not isinstance(task, ClickTask):
        raise InputError("--ranked needs clicks with labels, and this experiment has none")
    schema = task.data.schema
    ranking = embcomp.rank_features(task.data.split("train"), label=schema.label, features=schema.feature_names)
    features = [dataclasses.replace(score, feature=table_name(score.feature)) for score in ranking.features]
    return dataclasses.replace(ranking, features=tuple(features))


def _content(task: Any, counts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The codes of ids by table, where they have content and held-out clicks read ids that training has not seen."""
    if not isinstance(task, ClickTask):
        return {}
    features = [f for f in task.data.schema.features if task.data.content(f.name) is not None]
    batches = task.held_out(_HELD_OUT, _ROWS) if features else []
    codes = {}
    for feature in features:
        name = table_name(feature.name)
        ids = torch.cat([batch.sparse[feature.name].values() for batch in batches])
        if float((counts[name][ids] == 0).float().mean()) > _NEW:
            codes[name], _ = codes_of(ClickContent(task.data.folder, feature.name), _CODES)
    return codes


def _data(task: Any) -> dict[str, Any]:
    """The held-out batches; clicks in the form whose loss `choose` knows, which allows for models that overfit."""
    batches = task.held_out(_HELD_OUT, _ROWS)
    if isinstance(task, ClickTask):
        return {"data": [(batch.dense, batch.sparse, batch.label) for batch in batches]}
    return {"data": batches, "loss": task.loss}


def _trainer(task: Any, steps: int) -> Callable[[nn.Module, float], None]:
    """Make a function that trains a model for a share of `steps`; a model given again continues with later batches."""
    done: dict[int, int] = {}

    def train(model: nn.Module, share: float) -> None:
        tables = nn.ModuleList(_tables(model))
        model, optimizers = make_optimizers(BuiltModel(model, tables), task.run.optimizer)
        model.train()
        start = done.get(id(model), 0)
        number = max(1, round(share * steps))
        batches = _endless(task, start)
        for _ in range(number):
            loss = task.loss(model, next(batches))
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            if (most := task.run.optimizer.max_grad_norm) is not None:
                nn.utils.clip_grad_norm_(model.parameters(), most)
            for optimizer in optimizers:
                optimizer.step()
        done[id(model)] = start + number

    return train


def _endless(task: Any, start: int) -> Iterator[Any]:
    epoch, batch = divmod(start, task.steps)
    while True:
        yield from task.batches(epoch, batch)
        epoch, batch = epoch + 1, 0


def _tables(model: nn.Module) -> list[nn.Module]:
    """Return the outermost modules that hold tables."""
    kinds = (nn.Embedding, embcomp.nn.CompressedEmbedding)
    holders = [
        m for m in model.modules() if isinstance(m, kinds) or type(m).__name__.endswith("EmbeddingBagCollection")
    ]
    inner = {id(child) for module in holders for child in module.modules() if child is not module}
    return [module for module in holders if id(module) not in inner]


def _line(table: TableChoice) -> dict[str, Any]:
    bits = getattr(table.method, "bits", None)
    return {"method": kind(table.method), "bits": bits, "served": table.served, "training": table.training}


def _named(task: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    names = {table.name for table in task.tables}
    return {name: value for name, value in values.items() if name in names}


def _is_of(run: RunConfig, full: RunConfig) -> bool:
    return run.of_full_tables().name == full.of_full_tables().name and run.seed == full.seed
