"""The stages of a table whose bits are learned by group: search, choose, train again."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from embcomp.codecs.base import Codec
from embcomp.codecs.mixed_grid import MixedGridCodec
from embcomp.schedule.stages import Site, TableStages, stages_of


class BitStages(TableStages):
    """The stages of a table of `FrequencyBits`: the bits of each group are a learned mixture at first, then fixed."""

    begins_again = True

    def __init__(self, codec: MixedGridCodec, site: Site) -> None:
        self._codec, self._optimizer = codec, site.optimizer
        (self._store,) = (store for store in site.held.stores.values() if store.codec is codec)
        self.search = max(1, round(codec.mixed.search * site.epochs))
        if self.search >= site.epochs:
            raise ValueError(
                f"table {site.name!r}: its bits are searched in {self.search} of {site.epochs} epochs, and none is "
                "left to train with them; train for more epochs, or lower search"
            )

    def begin(self) -> None:
        groups = [] if self._optimizer is None else self._optimizer.param_groups
        rates = [group["lr"] for group in groups if any(own is self._codec.logits for own in group["params"])]
        self._codec.begin(float(rates[0]) if rates and rates[0] > 0 else None)

    def penalty(self) -> Tensor:
        return self._codec.penalty()

    @classmethod
    def choose_together(cls, tables: Sequence[Any]) -> None:
        for stages in tables:
            stages._codec.choose()
        MixedGridCodec.fit_together_([(stages._codec, stages._store.weight.detach()) for stages in tables])

    def codecs(self) -> Sequence[Codec]:
        return [self._codec]

    def state_dict(self) -> dict[str, Any]:
        return {"searching": self._codec.searching, **super().state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._codec.searching = bool(state["searching"])


@stages_of.register
def _(part: MixedGridCodec, site: Site) -> TableStages | None:
    return None if part.fitted else BitStages(part, site)  # bits that lose least of trained rows stay
