"""The nights: a chain of models, each trained from the one before, beside models that are trained from nothing."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import embcomp
from embcomp import artifact
from embcomp.files import Damaged
from experiments.studies.nightly.clicks import Clicks
from experiments.studies.nightly.growth import Growing, fresh, grown
from experiments.studies.nightly.model import Readers, Vectors, arguments, hits, train
from experiments.studies.nightly.service import Service, publish, swapped

K = 10
_KIND = "a night of a model"
_ASKING = 64  # readers that ask while the service swaps


class Chain:
    """The nights of one method.

    Args:
        clicks: all clicks.
        case: the settings of the method, the data and the training.
        folder: the folder of the models and of what they publish.
    """

    def __init__(self, clicks: Clicks, case: Mapping[str, Any], folder: Path) -> None:
        self.clicks, self.settings, self.seed, self.folder = clicks, case["training"], case["seed"], folder
        self.data = case["data"]
        self.growing = Growing(clicks, case["method"], self.seed)
        self.key = artifact.checksum(artifact.bytes_as_tensor(repr(dict(case)).encode()))
        self.service = Service()

    def nights(self, done: int) -> Iterator[dict[str, Any]]:
        """Yield the figures of each night after the first `done` ones; the last of these must be held (`holds`)."""
        chain, cold = self._load(done - 1) if done else (None, None)
        for night in range(done, self.data["days"]):
            chain, cold, figures = self._night(night, chain, cold)
            self._save(night, chain, cold)
            yield figures

    def _night(
        self, night: int, before: Readers | None, cold_before: Vectors | None
    ) -> tuple[Readers, Vectors, dict[str, Any]]:
        """Train the models on the clicks until a night, publish that of the chain, and measure."""
        clicks, number = self.clicks, self.clicks.number(night)
        figures: dict[str, Any] = {"articles": number, "clicks": len(clicks.rows(night, night))}
        begin = time.process_time()
        cold = self._fresh(night, begun=night, seed=self.seed + 1000 * night)
        train(cold, clicks, clicks.rows(0, night), self.settings, self.settings["epochs"], self.seed)
        figures["cold_seconds"] = round(time.process_time() - begin, 2)
        alone = cold
        if before is None:
            chain, old = copy.deepcopy(cold), None
            figures["chain_seconds"] = figures["cold_seconds"]
        else:
            begin, old = time.process_time(), Vectors.of(before)
            chain = copy.deepcopy(before)
            chain.articles = grown(before.articles, self.growing.method(night, 0), number, self.seed + night)
            figures["moved"] = self._moved(night, chain, old)
            epochs = self.settings["epochs_of_a_day"]
            train(chain, clicks, clicks.rows(night, night), self.settings, epochs, self.seed + night, old.articles)
            figures["chain_seconds"] = round(time.process_time() - begin, 2)
            alone = self._fresh(night, begun=night, seed=self.seed + 1000 * night)
            train(alone, clicks, clicks.rows(night, night), self.settings, self.settings["epochs"], self.seed)
        new, new_cold = Vectors.of(chain), Vectors.of(cold)
        figures |= self._quality(night, new, "chain") | self._quality(night, new_cold, "cold")
        figures |= self._quality(night, Vectors.of(alone), "alone")
        figures |= self._published(night, chain)
        if old is not None and cold_before is not None:
            figures["chain_index"] = self._compatible(night, new, old)
            figures["cold_index"] = self._compatible(night, new_cold, cold_before)
            figures["aligned_index"] = self._aligned(night, cold, cold_before)
        return chain, new_cold, figures

    def _fresh(self, night: int, begun: int, seed: int) -> Readers:
        method, dim = self.growing.method(night, begun), self.settings["embedding_dim"]
        return Readers(fresh(method, self.clicks.number(night), dim, seed))

    def _moved(self, night: int, grown_: Readers, old: Vectors) -> float:
        """Return the square distance by which growth alone moved the trained articles, as a share of their squares."""
        trained = self.clicks.counts(self.clicks.rows(0, night - 1), len(old.articles)) > 0
        before, now = old.articles[trained], Vectors.of(grown_).articles[: len(old.articles)][trained]
        return float((now - before).square().sum() / before.square().sum())

    def _asked(self, night: int) -> Tensor:
        """The clicks of a day that were not trained on, or a sample of them."""
        return self._some(self.clicks.rows(night, night, held_out=True))

    def _some(self, rows: Tensor) -> Tensor:
        draw = torch.Generator().manual_seed(self.seed)
        return rows[torch.randperm(len(rows), generator=draw)[: self.data["tested"]]]

    def _quality(self, night: int, vectors: Vectors, name: str) -> dict[str, float]:
        """The recall on the day's clicks that were held out, on those of new articles, and on the next day's clicks."""
        clicks, rows = self.clicks, self._asked(night)
        next_day = clicks.rows(night + 1, night + 1)
        next_day = self._some(next_day[clicks.articles[next_day] < len(vectors.articles)])
        known = clicks.number(night - 1) if night else 0
        new = rows[clicks.articles[rows] >= known]
        asked = {name: rows, f"{name}_new": new, f"{name}_next_day": next_day}
        return {
            what: float(hits(vectors, clicks.articles[some], clicks.histories[some], K).float().mean())
            for what, some in asked.items()
            if len(some)
        }

    def _published(self, night: int, chain: Readers) -> dict[str, Any]:
        """Publish the chain's model, swap it into the service, and measure the service."""
        clicks, bits, length = self.clicks, self.settings["index_bits"], self.data["length"]
        before, version = f"night-{night - 1}", f"night-{night}"
        program, index = publish(chain, self.folder, version, length, bits)
        figures: dict[str, Any] = {
            "served_nbytes": embcomp.served_nbytes(chain.articles),
            "training_nbytes": embcomp.training_nbytes(chain.articles),
            "program_nbytes": program,
            "index_nbytes": index,
        }
        if night:
            asked = arguments(clicks.histories[self._asked(night)[:_ASKING]], clicks.number(night - 1))
            self.service.load(self.folder, before, before)
            figures["swap"] = swapped(self.service, self.folder, before, version, asked)
        else:
            self.service.load(self.folder, version, version)
        rows = self._asked(night)
        asked = arguments(clicks.histories[rows], clicks.number(night))
        found = self.service.answer(*asked, K + length)[1]
        past = (found.unsqueeze(2) == clicks.histories[rows].unsqueeze(1)).any(2)
        first = found.gather(1, past.int().argsort(dim=1, stable=True)[:, :K])  # without those that were clicked
        figures["served"] = float((first == clicks.articles[rows].unsqueeze(1)).any(1).float().mean())
        return figures

    def _compatible(self, night: int, new: Vectors, old: Vectors) -> dict[str, float]:
        """Measure new readers on the old index, and the other mixtures, on the articles that both know."""
        rows = self._asked(night)
        rows = rows[self.clicks.articles[rows] < len(old.articles)]
        histories, asking = self.clicks.histories[rows], torch.arange(len(rows))
        pairs = torch.stack([asking, self.clicks.articles[rows]])
        past = (histories >= 0) & (histories < len(old.articles))
        known = torch.stack([asking.unsqueeze(1).expand_as(past)[past], histories[past]])
        now, before = ((each.readers(histories), each.articles) for each in (new, old))
        table = embcomp.compatible(now, before, pairs, k=K, known=known)
        return {name: getattr(table, name) for name in ("new_new", "new_old", "old_new", "half", "old_old")}

    def _aligned(self, night: int, cold: Readers, old: Vectors) -> dict[str, float] | None:
        """Turn a model that is trained from nothing, and measure again; None if its tables cannot be turned."""
        turned = copy.deepcopy(cold)
        try:
            embcomp.align_(turned, {"articles": old.articles, "start": old.start}, ["articles", "start"])
        except ValueError:
            return None
        return self._compatible(night, Vectors.of(turned), old)

    def _path(self, night: int) -> Path:
        return self.folder / f"night-{night}.safetensors"

    def _save(self, night: int, chain: Readers, cold: Vectors) -> None:
        tensors = {f"chain.{name}": value for name, value in chain.state_dict().items()}
        artifact.save(self._path(night), _KIND, {"key": self.key}, {**tensors, **vars(cold)})

    def holds(self, night: int) -> bool:
        """Return whether the models of a night are there, of these settings."""
        try:
            return artifact.load(self._path(night), _KIND)[0]["key"] == self.key
        except (FileNotFoundError, Damaged):
            return False

    def _load(self, night: int) -> tuple[Readers, Vectors]:
        _, tensors = artifact.load(self._path(night), _KIND)
        chain = self._fresh(night, begun=0, seed=0)
        chain.load_state_dict({n.removeprefix("chain."): v for n, v in tensors.items() if n.startswith("chain.")})
        return chain, Vectors(tensors["articles"], tensors["start"])
