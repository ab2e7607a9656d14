"""The changes of tables while a model trains: stages, searches, rows that move, new clusters."""

from embcomp.schedule.schedule import (
    UNTIL,
    Schedule,
    _Clusters,  # noqa: F401  # pyright: ignore (pickles name it here)
    _MovingRows,  # noqa: F401  # pyright: ignore
    changes_in_training,
)

__all__ = ["UNTIL", "Schedule", "changes_in_training"]
