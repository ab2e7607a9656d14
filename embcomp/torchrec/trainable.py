"""The collections of a model that `fuse_` and `shard` train inside the backward pass."""

from torch import nn

from embcomp.holders import Holder, holders
from embcomp.torchrec.fused.integers import IntegerTables
from embcomp.torchrec.holders import Collection, CollectionHolder


def trained_collections(model: nn.Module, verb: str) -> dict[Collection, list[tuple[nn.Module, str]]]:
    """Return the trained collections of a model and where each is held (a collection used twice stays one).

    Args:
        model: the model with torchrec collections.
        verb: the name of the action, for messages.

    Raises:
        ValueError: tables are partly frozen, another module holds the same weight, or something was added to them by
            hand that the replacement would lose, such as hooks.
    """
    places: dict[Collection, list[tuple[nn.Module, str]]] = {}
    found: dict[Collection, CollectionHolder] = {}
    for holder in plain_collections(model):
        where = [path.rpartition(".") for path in holder.paths if path]
        if where:
            found[holder.module] = holder
            parents = {(model.get_submodule(parent), name): None for parent, _, name in where}
            places[holder.module] = list(parents)
    owners: dict[int, int] = {}
    for module in model.modules():
        for weight in module._parameters.values():
            owners[id(weight)] = owners.get(id(weight), 0) + 1
    for collection in list(places):
        weights = dict(collection.named_parameters())
        tied = [name for name, weight in weights.items() if owners[id(weight)] > 1]
        if tied:
            raise ValueError(
                f"cannot {verb} {tied}: another module holds the same weight, and would not see its updates"
            )
        frozen = [name for name, weight in weights.items() if not weight.requires_grad]
        if len(frozen) == len(weights):
            del places[collection]  # nothing to train: it stays as it is
        elif frozen:
            raise ValueError(
                f"cannot {verb} {frozen}: frozen, in one collection with trained tables; give them another"
            )
        else:
            found[collection].check_as_made(verb)
    return places


def plain_collections(model: nn.Module) -> list[CollectionHolder]:
    """Return the collections of torchrec's own classes in a model, also those inside compressed ones."""

    def opened(holder: Holder) -> bool:
        return not isinstance(holder, CollectionHolder) or holder.behaves

    return [holder for holder in holders(model, opened=opened) if isinstance(holder, CollectionHolder)]


def untrained_integers(model: nn.Module) -> list[IntegerTables]:
    """Return the tables of integers to which no `fuse_` was applied yet."""
    modules = [holder.module for holder in holders(model, opened=lambda holder: holder.form != "fused")]
    return [tables for tables in modules if isinstance(tables, IntegerTables) and tables.settings is None]
