"""The files that a night publishes, and a service that swaps them while it answers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import embcomp
from embcomp import retrieval, serving
from embcomp.retrieval import VectorCodes
from experiments.studies.nightly.model import Readers


def publish(model: Readers, folder: Path, version: str, length: int, bits: int) -> tuple[int, int]:
    """Write the program of readers and the codes of articles, of one version, and return their bytes in memory."""
    example = (torch.zeros(2, length, dtype=torch.int64), torch.ones(2, length))
    report = embcomp.export(model, folder / f"readers-{version}.pt2", example, dtype="float32", version=version)
    codes = retrieval.compress(model.articles.materialize().detach(), bits=bits, version=version)
    codes.save(folder / f"articles-{version}.codes")
    return report.bytes_exported, codes.nbytes


class Service:
    """A service that answers with one pair of program and codes at a time."""

    state: tuple[str, Any, VectorCodes]

    def load(self, folder: Path, readers: str, articles: str) -> None:
        """Load a pair, and answer with it from now on. Raise ValueError if the two versions differ."""
        program = serving.load(folder / f"readers-{readers}.pt2", version=readers).module()
        codes = VectorCodes.load(folder / f"articles-{articles}.codes", version=readers)
        self.state = readers, program, codes  # one assignment: an answer is of either pair

    def answer(self, histories: Tensor, weights: Tensor, k: int) -> tuple[str, Tensor]:
        """Return the version, and the k articles for each reader, int64 [B, k]."""
        version, program, codes = self.state
        return version, codes.search(program(histories, weights), k, version=version).rows


def swapped(
    service: Service, folder: Path, before: str, after: str, asked: tuple[Tensor, Tensor], k: int = 10
) -> dict[str, int]:
    """Swap the pair while another thread asks, and count its answers, the wrong ones, and the mixed pairs refused.

    An answer is wrong if it is an error, or not the one that its version gives while nothing is swapped.

    Args:
        service: the service, which answers with the version `before`.
        folder: the folder of both versions.
        before: the version before.
        after: the version afterwards.
        asked: the histories and weights of some readers, all of which both versions know.
        k: the number of articles of an answer.
    """
    expected = dict([service.answer(*asked, k)])
    answers: list[tuple[str, Tensor]] = []
    done = threading.Event()

    failed: list[ValueError] = []

    def ask() -> None:
        while not done.is_set():
            try:
                answers.append(service.answer(*asked, k))
            except ValueError as error:
                failed.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    refused = 0
    try:
        for readers, articles in ((before, after), (after, before)):
            try:
                service.load(folder, readers, articles)
            except ValueError:
                refused += 1
        service.load(folder, after, after)
    finally:
        done.set()
        asking.join()
    answers.append(service.answer(*asked, k))
    expected |= dict(answers[-1:])
    wrong = sum(not torch.equal(rows, expected[version]) for version, rows in answers)
    return {"answers": len(answers) + len(failed), "wrong": wrong + len(failed), "refused": refused}
