"""Functions on several processes that form a gloo group, started by a fork of one that has imported everything."""

import multiprocessing
import os
import traceback
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def run_on(world_size: int, function: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """`function(*arguments)` on each rank -> what each answered, by rank: a value, or the exception that it raised.

    A rank that was killed has answered None. The function is one of a module that can be imported.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / f".ranks-{uuid.uuid4().hex}"
    answers = [folder / f"{store.name}-{rank}" for rank in range(world_size)]
    processes = [
        context.Process(target=_on_rank, args=(rank, world_size, str(store), answers[rank], function, arguments))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = [torch.load(path, weights_only=False) if path.exists() else None for path in answers]
    for path in (store, *answers):
        path.unlink(missing_ok=True)
    return found


def _on_rank(
    rank: int, world_size: int, store: str, answer: Path, function: Callable[..., Any], arguments: tuple
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timedelta(seconds=120)
    )
    try:
        found = function(*arguments)
    except Exception as error:
        error.add_note(traceback.format_exc())  # which is not sent along
        found = error
    part = answer.with_suffix(".part")
    torch.save(found, part)
    os.replace(part, answer)
    dist.destroy_process_group()
