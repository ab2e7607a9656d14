"""The caches in which models keep the outputs of their tables, and how to empty them."""

import inspect
from collections.abc import Collection

from torch import Tensor, nn

RESETS = ("reset_cache", "clear_cache")
"""The methods without arguments by which models empty their caches."""
KEPT = ("restore_user_e", "restore_item_e", "restore_entity_e")
"""The attributes in which RecBole's models keep propagated tables between evaluations; None means empty."""


def drop_outputs(model: nn.Module, tables: Collection[nn.Module]) -> None:
    """Empty the caches of the modules that hold one of the tables, if they have one of the usual names.

    A cache of another name cannot be told from a constant.
    """
    wanted = {id(table) for table in tables}
    for module in model.modules():
        if not any(id(submodule) in wanted for submodule in module.modules()):
            continue
        for name in RESETS:
            reset = getattr(module, name, None)
            if callable(reset) and not inspect.signature(reset).parameters:
                reset()
        for name in KEPT:
            if isinstance(vars(module).get(name), Tensor):
                setattr(module, name, None)
