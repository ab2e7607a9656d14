"""Writers in processes of their own: `python writers.py LOCATION FIRST:COUNT...`.

Each appends COUNT items to one user, FIRST, FIRST + 1, ..., and says "PID ITEM" on a line once an item is acknowledged.
They fork from one process, which has imported everything, and begin as soon as their store is open.
"""

import os
import sys

from conftest import make_encoder

from embcomp.sdim import BehaviorStore


def write(location: str, first: int, count: int) -> None:
    with BehaviorStore(location, make_encoder()) as store:
        for item in range(first, first + count):
            store.append("shared", [item])
            os.write(1, f"{os.getpid()} {item}\n".encode())


if __name__ == "__main__":
    location, *tasks = sys.argv[1:]
    for task in tasks:
        if os.fork() == 0:
            write(location, *map(int, task.split(":")))
            os._exit(0)
    for _ in tasks:
        os.wait()
