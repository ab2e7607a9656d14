"""An iterator that runs ahead in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import Full, Queue
from typing import TypeVar

T = TypeVar("T")
_END = object()


def prefetched(make: Callable[[], Iterator[T]], ahead: int) -> Iterator[T]:
    """Yield the items of `make()`, up to `ahead` of which are made in advance.

    An exception of the iterator is raised here, after the items before it. The thread ends with this generator, even if
    the generator is closed early.
    """
    queue: Queue[object] = Queue(maxsize=ahead)
    stopped = threading.Event()

    def put(item: object) -> bool:
        while not stopped.is_set():
            try:
                queue.put(item, timeout=0.05)
                return True
            except Full:
                continue
        return False

    def work() -> None:
        items = make()
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((_END, None))
        except BaseException as error:
            put((_END, error))

    thread = threading.Thread(target=work, name="data-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = queue.get()  # type: ignore[misc]
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stopped.set()
        thread.join()
