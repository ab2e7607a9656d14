"""The progress of probes and short trainings, in one line on stderr."""

import sys
import time
from types import TracebackType

WIDTH = 20
"""The characters of the bar."""


class Progress:
    """A bar that is drawn anew for each thing that is measured.

    The search measures only what its best plans use, so the end may come before the bar is full.

    Args:
        shown: True to draw; None to draw if stderr is a terminal.
        seconds: the time after which nothing more is measured, if there is a limit.

    Attributes:
        most: the most measurements that can be needed; 0 if unknown.
    """

    def __init__(self, shown: bool | None, seconds: float | None) -> None:
        self.shown = sys.stderr.isatty() if shown is None else shown
        self.seconds, self.most, self.number = seconds, 0, 0
        self.started = time.monotonic()

    def __call__(self, text: str) -> None:
        """Count a measurement, and show the text."""
        self.number += 1
        if self.shown:
            spent = time.monotonic() - self.started
            parts = [self.number / self.most if self.most else 0.0, spent / self.seconds if self.seconds else 0.0]
            full = min(WIDTH, int(WIDTH * max(parts)))
            of = f" of at most {self.most}" if self.most else ""
            limit = f" of {self.seconds:.0f}" if self.seconds else ""
            said = f"[{'#' * full}{'.' * (WIDTH - full)}] {self.number}{of}, {spent:.0f}{limit} s: {text[:50]}"
            print(f"\r\033[K{said}", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.shown and self.number:
            print(file=sys.stderr, flush=True)
