import threading
import time

import pytest

from data.prefetch import prefetched


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "data-prefetch"]


def test_items_in_order_and_no_thread_left():
    assert list(prefetched(lambda: iter(range(100)), 3)) == list(range(100))
    assert not threads()


def test_makes_no_more_than_it_may():
    made = []

    def items():
        for i in range(10):
            made.append(i)
            yield i

    iterator = prefetched(items, 2)
    assert next(iterator) == 0
    time.sleep(0.2)
    assert len(made) <= 4  # one given, two waiting, one in hand
    iterator.close()
    assert not threads()


def test_an_exception_comes_after_the_items_before_it():
    def items():
        yield 1
        raise KeyError("broken")

    iterator = prefetched(items, 4)
    assert next(iterator) == 1
    with pytest.raises(KeyError, match="broken"):
        next(iterator)
    assert not threads()


def test_nothing_starts_before_the_first_item_is_asked_for():
    prefetched(lambda: iter([1]), 1)
    assert not threads()


def test_the_source_is_closed_when_the_reader_stops():
    closed = threading.Event()

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    for _ in prefetched(items, 2):
        break
    assert closed.wait(5)
    assert not threads()
