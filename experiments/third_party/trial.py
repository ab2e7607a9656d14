"""The trial of one method on one model: train, swap, train again, and report the outcome."""

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import embcomp
from embcomp.nn.table import CompressedTable
from experiments.third_party.case import Build, Case

STEPS = 6
_TABLES = (CompressedTable, nn.Embedding, nn.EmbeddingBag)


def _width(model: nn.Module) -> int:
    """Return a chunk width that divides the widths of all tables."""
    return math.gcd(*(module.embedding_dim for module in model.modules() if isinstance(module, nn.Embedding)))


METHODS: dict[str, Callable[[nn.Module], embcomp.Method]] = {
    "HashingTrick": lambda model: embcomp.HashingTrick(rows=20),
    "DoubleHash": lambda model: embcomp.DoubleHash(rows=20),
    "UnifiedEmbedding": lambda model: embcomp.UnifiedEmbedding(rows=60, chunk_dim=_width(model)),
    "LowBit": lambda model: embcomp.LowBit(bits=4),
}


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _rows(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of tables, compressed or not."""
    kept = {id(p) for module in model.modules() if isinstance(module, _TABLES) for p in module.parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) in kept}


def _train(case: Case) -> list[str]:
    """Train some steps; return the names of parameters of tables that did not change."""
    model = case.model
    optimizer: Any = model.optimizer if case.own_optimizer else torch.optim.Adam(model.parameters(), lr=0.01)
    before = {name: p.detach().clone() for name, p in _rows(model).items()}
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = case.loss(model)
        if not bool(value.isfinite().all()):
            raise ArithmeticError(f"the loss is {value.detach()}")
        value.sum().backward()
        optimizer.step()
    return [name for name, p in _rows(model).items() if name in before and torch.equal(p, before[name])]


def _unread(case: Case) -> list[str]:
    """Return the parameters of tables that the answers do not depend on: unused tables, or those behind dead units."""
    case.model.zero_grad()
    (case.answer or case.loss)(case.model).sum().backward()
    return [name for name, p in _rows(case.model).items() if p.grad is None or not bool(p.grad.any())]


def _missed_by_penalty(case: Case) -> list[str]:
    """Return the weights of tables that the library's penalty of tables does not reach."""
    if case.penalty is None:
        return []
    case.model.zero_grad()
    case.penalty(case.model).backward()
    weights = {name: p for name, p in _rows(case.model).items() if name.endswith(".weight") and p.requires_grad}
    return [name for name, p in weights.items() if p.grad is None]


def _answer(case: Case) -> float:
    """Return the loss of the model in evaluation, which a swap to equal vectors must not change."""
    _seed(1)  # models draw negatives, noise and orders from all three
    case.model.eval()
    with torch.no_grad():
        value = float((case.answer or case.loss)(case.model).sum())
    case.model.train()
    return value


def try_exact(build: Build) -> tuple[str, str]:
    """Check that a warm start with a separate row for each id does not change the loss of the model."""

    def swapped(case: Case) -> list[str]:
        before = _answer(case)
        tables = {path: module for path, module in case.model.named_modules() if type(module) is nn.Embedding}
        own = {path: embcomp.QuotientRemainder(rows=t.num_embeddings, combine="mul") for path, t in tables.items()}
        embcomp.compress_(case.model, own, init="warm")
        after = _answer(case)
        return [] if math.isclose(before, after, rel_tol=1e-4, abs_tol=1e-5) else [f"loss {before} -> {after}"]

    return _try(build, swapped)


def try_method(build: Build, method: Callable[[nn.Module], embcomp.Method], init: Any) -> tuple[str, str]:
    """Check that every row of the swapped model learns, and that its library's penalties reach it."""

    def swapped(case: Case) -> list[str]:
        embcomp.compress_(case.model, {"*": method(case.model)}, init=init)
        return []

    return _try(build, swapped)


def _try(build: Build, swap: Callable[[Case], list[str]]) -> tuple[str, str]:
    """Return (an outcome of OUTCOMES, the reason)."""
    _seed(0)
    try:
        full = build()
        missed = [name.removesuffix("weight") for name in _missed_by_penalty(full)]
        unused = tuple(name.removesuffix("weight") for name in [*_train(full), *_unread(full)])
    except Exception as error:
        return "does not run", f"{type(error).__name__}: {error}"
    if not any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in full.model.modules()):
        return "no table", ""
    _seed(0)
    case = build() if full.own_optimizer else full  # an optimizer that has stepped is refused, and rightly
    try:
        odd = swap(case)
    except ValueError as error:
        return "refused", str(error)
    except Exception as error:
        return "wrong", f"{type(error).__name__}: {error}"
    try:
        odd += [f"no penalty: {name}" for name in _missed_by_penalty(case) if not name.startswith(tuple(missed))]
        odd += [f"not trained: {name}" for name in _train(case) if not name.startswith(unused)]
    except Exception as error:
        return "wrong", f"{type(error).__name__}: {error}"
    return ("wrong", "; ".join(odd)) if odd else ("trained", "")
