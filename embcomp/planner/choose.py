"""`choose`: from a byte budget and a model to a method and a size for every table."""

import functools
import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from embcomp.files import StrPath
from embcomp.formats import parse_nbytes
from embcomp.methods.base import check_counts
from embcomp.methods.plan import Count
from embcomp.methods.request import Budget
from embcomp.methods.table import Table
from embcomp.planner import linked, rules
from embcomp.planner.choice import Choice, kind
from embcomp.planner.estimates import After, ByProbes, ByRules, Estimates, guessed
from embcomp.planner.features_ranking import FeatureRanking
from embcomp.planner.kept_trials import KeptTrials
from embcomp.planner.offers import notes_on_offers, offers, only_sides
from embcomp.planner.options import Option, Options, options_of
from embcomp.planner.probes import Loss, evaluating
from embcomp.planner.progress import Progress
from embcomp.planner.reads import Reads
from embcomp.planner.search import TOGETHER, Search
from embcomp.planner.tables import Held, Widths, by_name, held_tables, owners
from embcomp.planner.trained import notes_on_bytes, notes_on_compressed, notes_on_loss, probes_of
from embcomp.planner.trials import Train, halved
from embcomp.settings import Bytes, checked, shown

if TYPE_CHECKING:
    from embcomp.graph.cluster_map import Side
    from embcomp.graph.edges import Edges


def choose(
    model_or_tables: nn.Module | Sequence[Table],
    nbytes: Budget,
    *,
    count: Count = "served",
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    options: Options | None = None,
    keep: str | Collection[str] | None = None,
    counts: Mapping[str, Tensor] | None = None,
    edges: "Edges | None" = None,
    content: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    worth: Mapping[str, float] | FeatureRanking | None = None,
    sides: "Mapping[str, Side] | None" = None,
    init: After = "fresh",
    train: Train | None = None,
    effort: float = 0.2,
    seconds: float | None = None,
    cache: StrPath | None = None,
    widths: Widths | None = None,
    progress: bool | None = None,
) -> Choice:
    """Choose a method and a size for every table, so that all fit a byte budget and the model loses least.

    There are three levels of knowledge, each with more than the one before. With sizes and counts alone, fixed rules
    estimate the cost of bits, ranks and shared rows (`embcomp.planner.rules`). With a trained model and held-out
    batches, the loss shows the worth of each table, and how much of it ranks and codes lose, table by table and then
    together. With `train`, the best plans are trained for a short while, by successive halving. The choice is a
    multiple-choice knapsack, solved exactly.

    Args:
        model_or_tables: a model that `compress_` accepts, or tables.
        nbytes: the budget for all tables and maps: a number of bytes, "50MB", or "10%" of the full tables in float32.
        count: "served" to limit the bytes of the served form, "training" those of the training form.
        data: held-out batches, if the model is trained.
        loss: a function from a model and a batch to the mean loss of the batch; by default the log-loss of logits, for
            batches of (inputs..., labels), or if that is above the loss without a model, as after overfitting, the one
            that is left when the logits of each batch are scaled, if batches have 100 rows or more.
        options: the methods to choose from, for all tables or by pattern; by default own rows of 8 to 1 bits, low rank,
            product codes and shared rows. A method whose tables share a store is one option for all its tables.
        keep: patterns of tables that stay unchanged. Their bytes count.
        counts: the number of times each id occurs in training, [num_embeddings], by table name.
        edges: interactions as a graph, which add clusters as options for the tables of its two sides.
        content: semantic codes of ids, int64 [num_embeddings, levels], by table name, if ids come that training has
            not seen: it adds `SemanticIds`, which serves them, as options, and rows by id are expected to lose more.
        seed: the seed of hashes and clusterings.
        worth: the worth of tables in any unit, by table name, if it is known without a trained model, or what
            `embcomp.rank_features` says of the clicks, whose useless features are worth nothing. With a trained model
            it is the order of the probes, and what the measured worth is drawn to.
        sides: "users" or "items" by table name, if the numbers of ids do not determine the tables of `edges`.
        init: the start of the tables. With "fit" no training follows, and options cost what a probe measures; with
            "fresh" and "warm" training follows, which recovers much of the initial loss of bits and ranks.
        train: a function that trains a model for a share of a full training. The copies of all plans, which are in
            training mode, are held at the same time.
        effort: the share of a full training that all short trainings together may take.
        seconds: the time limit of the probes, in seconds; options that are not measured by then are estimated by rules.
        cache: a file that keeps the probes, so that a second call, or a call after an interruption, continues; finished
            short trainings are kept in a folder beside it until all are done.
        widths: "fbgemm" for rows whose width is a multiple of 4, which `shard` needs; by default for torchrec
            collections that are not on the CPU.
        progress: True to show progress on stderr; by default if stderr is a terminal.

    Returns:
        The choice; `compress_(model, choice.methods)` applies it.

    Raises:
        TypeError: an argument has another type, or data is given for tables without a model.
        ValueError: the budget is below the minimum, which the text gives with the table that needs most of it; options
            fit no table; data has no labels or one class; the model is not trained; or a loss is not finite.
        ImportError: SciPy is not installed.

    Example:
        >>> import torch, embcomp
        >>> model = torch.nn.ModuleDict({"user": torch.nn.Embedding(50_000, 16), "day": torch.nn.Embedding(7, 16)})
        >>> choice = embcomp.choose(model, "10%")
        >>> choice.nbytes <= choice.budget == 320_044, sorted(choice.methods)
        (True, ['day', 'user'])
        >>> report = embcomp.compress_(model, choice.methods)
    """
    started = time.monotonic()
    checked(count, Count, "count")
    checked(init, After, "init")
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0):
        raise ValueError(f"seconds must be a number of at least 0, or None, got {seconds!r}")
    checked(progress, bool | None, "progress")
    checked(effort, float, "effort")
    if not 0 < effort <= 10:
        raise ValueError(f"effort must be a share of a full training, at most 10, such as .2, got {effort!r}")
    for name, function in (("loss", loss), ("train", train)):
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be a function, got {shown(function)}")
    if cache is not None and Path(cache).is_dir():
        raise ValueError(f"cache must be a file for the probes, and {cache} is a folder")
    if data is not None and (isinstance(data, str | Mapping) or not isinstance(data, Iterable)):
        raise TypeError(f"data must be held-out batches, a list of them or a loader, got {shown(data)}")
    if data is None:
        _check_needless(init, cache, seconds)
    if isinstance(model_or_tables, Tensor):
        raise TypeError("choose takes a model or its tables, got a tensor; for item vectors: embcomp.retrieval.choose")
    held = held_tables(model_or_tables, keep, widths)
    budget, said = _budget(held, nbytes), notes_on_bytes(held) + notes_on_compressed(model_or_tables)
    if isinstance(worth, Mapping) and (unknown := _unknown(held, worth)):
        said.append(f"worth names {unknown[:5]}, which no table is called: left out")
    known = {name: check_counts(c, _table(held, name)) for name, c in by_name(held, counts, "counts").items()}
    codes = by_name(held, content, "content")
    listed = offers(held, count, edges=edges, sides=sides, content=codes, counts=known, seed=seed)
    of_graph = edges is not None and only_sides(held, edges, sides)
    reads = {name: Reads.of(each) for name, each in known.items() if bool((each > 0).any())}
    usual = (
        functools.partial(linked.loss, fresh=init == "fresh")
        if of_graph
        else functools.partial(rules.loss, reads=reads if init == "fresh" else {})
    )
    rule = rules.for_new_ids(usual, set(codes)) if codes else usual
    alike = {table.name: 1.0 for table in held if of_graph and not table.kept}  # the two sides of a product
    offered = functools.partial(options_of, held, count, options, counts=known, extra=listed, seed=seed)
    judge: Estimates = ByRules(held, _worth(held, worth) or alike, rule)
    if data is None:
        if loss is not None or train is not None:
            raise ValueError(f"{'loss' if loss else 'train'} needs held-out batches: give data")
        search = Search(held, offered(silent=judge.silent), judge, count, budget)
        search.check()
        notes = [*notes_on_offers(held, options, listed), *said]
        return replace(search.choice(search.best(), 1), failed=[], notes=notes, seconds=time.monotonic() - started)
    if not isinstance(model_or_tables, nn.Module):
        raise TypeError("data is for a trained model: give the model instead of its tables")
    with Progress(progress, seconds) as heard:
        probes = probes_of(model_or_tables, held, list(data), loss, known, cache, seconds, heard)
        if probes.worth(range(len(held))) is None:  # the time was over before the first
            search = Search(held, offered(silent=judge.silent), judge, count, budget)
            search.check()
            notes = [f"the time of {seconds} s ended before the first probe: all is by rules, as without a model"]
            choice = search.choice(search.best(), 1)
            return replace(choice, failed=[], notes=notes, seconds=time.monotonic() - started)
        told = _worth(held, worth)
        prior = [told.get(table.name, 0.0) for table in held] if told else guessed(held)
        judge = ByProbes(held, probes, init, rule, None if of_graph else prior)
        search = Search(held, offered(silent=judge.silent), judge, count, budget)
        search.check()
        heard.most = heard.number + judge.measurable(search.options) + TOGETHER
        if train is None:
            plan, level, notes = search.best(), 2, []
        else:
            (plan, notes), level = _raced(model_or_tables, search, judge, train, effort), 3
        choice = search.choice(plan, level)
    failed = [f"{', '.join(f.tables)}: {_what(f.method)}: {f.why}" for f in probes.failed]
    notes += notes_on_loss(model_or_tables, probes) + notes_on_offers(held, options, listed) + said
    if probes.late:
        notes = [*notes, f"the time of {seconds} s ended after {probes.made} probes: the rest is by rules"]
    return replace(choice, failed=failed, seconds=time.monotonic() - started, notes=notes)


def _raced(
    model: nn.Module, search: Search, judge: ByProbes, train: Train, effort: float
) -> tuple[list[Option], list[str]]:
    """Train the best plans for a short while and return the best of them."""
    plans = search.rivals()
    if len(plans) == 1:
        return plans[0], ["no short trainings: no other plan is expected to lose about as little"]
    names = [{escape(search.held[i].name): o.method for o in plan for i in o.tables} for plan in plans]
    probes = judge.probes

    def measured(candidate: nn.Module) -> list[float]:
        with torch.no_grad(), evaluating(candidate):
            return [float(probes.loss(candidate, batch)) for batch in probes.batches]

    wrong: list[str] = []

    def failed(plan: int, why: str) -> None:
        methods = ", ".join(dict.fromkeys(kind(option.method) for option in plans[plan]))
        wrong.append(f"the short training of plan {plan + 1} ({methods}) failed: {why}")

    kept = KeptTrials(None if probes.cache is None else Path(f"{probes.cache}.trials"), probes.what)
    winner, losses = halved(
        model, names, train, measured, probes.difference, effort=effort, kept=kept, heard=probes.heard, failed=failed
    )
    kept.clear()
    means = ", ".join(f"{probes.mean(each):.4f}" if each else "failed" for each in losses)
    how = "by more than chance" if winner else "as none is better by more than chance"
    if not losses[0]:
        how = "the best of the others"
    return plans[winner], [f"short trainings: {len(plans)} plans, losses {means}; plan {winner + 1}, {how}", *wrong]


def _check_needless(init: After, cache: StrPath | None, seconds: float | None) -> None:
    """Raise ValueError for settings that say something of probes, where there is no data for them."""
    if init == "fit":
        raise ValueError("init='fit' means that no training follows, so that losses are measured: give data")
    for name, value in (("cache", cache), ("seconds", seconds)):
        if value is not None:
            raise ValueError(f"{name}={value!r} is for the probes of a trained model, which need data")


def _what(probe: str) -> str:
    """The method of a probe, as short as it can be said."""
    if probe == "mean":
        return "one vector for all ids"
    methods = [method for _, method in json.loads(probe)]
    return " and ".join(dict.fromkeys(_short(method) for method in methods))


def _short(method: Mapping[str, Any]) -> str:
    inner = method.get("of")
    rank = f" {method['rank']}" if "rank" in method else ""
    inside = f"({_short(inner)})" if isinstance(inner, Mapping) and inner["method"] != "Full" else ""
    return f"{method['method']}{rank}{inside}"


def _budget(held: Sequence[Held], nbytes: Budget) -> int:
    full = None if any(t.table.num_embeddings is None for t in held) else sum(t.nbytes for t in held)
    return checked(parse_nbytes(nbytes, full), Bytes, "nbytes")


def _worth(held: Sequence[Held], given: Mapping[str, float] | FeatureRanking | None) -> dict[str, float]:
    """The given worth by table name; scores of features that are not tables are left out."""
    if isinstance(given, FeatureRanking):
        useless = set(given.useless)
        given = {name: 0.0 if name in useless else score for name, score in given.scores.items()}
    scores = checked(given, Mapping[str, float] | None, "worth") or {}
    unknown = _unknown(held, scores)
    if unknown and len(unknown) == len(scores):
        raise ValueError(f"worth names no table: {unknown[:5]}; the tables are {[t.name for t in held]}")
    return {table.name: float(value) for name, value in scores.items() for table in owners(held, name)}


def _unknown(held: Sequence[Held], names: Iterable[str]) -> list[str]:
    """The names that no table has."""
    return sorted(name for name in names if not owners(held, name))


def _table(held: Sequence[Held], name: str) -> Table:
    return next(t.table for t in held if t.name == name)
