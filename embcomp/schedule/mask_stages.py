"""The stages of a table whose mask is learned: search, choose, train under the mask."""

from collections.abc import Sequence

from torch import Tensor, nn

from embcomp.codecs.base import Codec
from embcomp.codecs.sparse import SparseCodec
from embcomp.schedule.stages import Site, TableStages, stages_of

EVERY = 10  # steps between two prunings by magnitude
REACHED = 0.9  # of its target, at least, by the end of the search


class MaskStages(TableStages):
    """The stages of a table of `LearnedMask`.

    With the rule "magnitude" the smallest entries become zero every 10 steps after the first epoch (if there are
    others), a share (1 - keep) (1 - damping^(n / 100)) of all after n such steps; training goes on under the chosen
    mask. The other rules train again from the initial values.
    """

    def __init__(self, codec: SparseCodec, site: Site) -> None:
        self._codec, coding = codec, codec.sparse
        (self._store,) = (
            store for store in site.held.stores.values() if store.codec is not None and codec in store.codec.modules()
        )
        if coding.decay and self._store.states:
            raise ValueError(
                f"table {site.name!r}: decay needs gradients of all rows, but a fused optimizer trains them; leave it "
                "out, or set weight_decay of that optimizer"
            )
        self.search = site.search_epochs(coding.search, "its mask")
        self.begins_again = coding.rule != "magnitude"
        self._warm = site.steps if self.search > 1 else 0
        pruning = self.search * site.steps - self._warm
        if coding.rule == "magnitude" and pruning < EVERY:
            raise ValueError(
                f"table {site.name!r}: the {pruning} steps of its search after the first epoch are fewer than the "
                f"{EVERY} from one pruning to the next; raise search, or train for more steps"
            )
        self._damping = 0.01 ** (100 / pruning) if coding.damping is None else coding.damping
        reached = 1 - self._damping ** (pruning / 100)
        if reached < REACHED:
            raise ValueError(
                f"table {site.name!r}: with damping={coding.damping} its {pruning} steps of pruning reach only "
                f"{reached:.0%} of the target; lower damping or leave it out, or train for more steps"
            )

    def _values(self) -> Tensor:
        return self._codec.values(self._store.weight.detach())

    def begin(self) -> None:
        self._codec.begin()

    def step(self, done: int) -> None:
        codec = self._codec
        if not bool(codec.searching):
            return
        if codec.sparse.rule == "gates":
            codec.rule.gates.clamp_(0.0, 1.0)  # pyright: ignore[reportCallIssue]
        pruned = done - self._warm
        if codec.sparse.rule == "magnitude" and pruned > 0 and pruned % EVERY == 0:
            keep = 1 - codec.sparse.kept / codec.blocks
            number = int(keep * (1 - self._damping ** (pruned / 100)) * codec.blocks)
            blocks = self._values().unflatten(1, (-1, codec.sparse.block))
            order = codec.rule.scores(self._values()).unflatten(1, (-1, codec.sparse.block)).sum(2).reshape(-1)
            smallest = order.topk(number, largest=False).indices
            each = blocks.shape[1]
            blocks[smallest // each, smallest % each] = 0.0

    def penalty(self) -> Tensor | None:
        penalty, decay = self._codec.rule.penalty(), self._codec.sparse.decay
        if not decay:
            return penalty
        squares = decay / 2 * self._store.weight.square().sum()
        return squares if penalty is None else penalty + squares

    def held_out(self) -> Sequence[nn.Parameter]:
        return list(self._codec.rule.parameters()) if self._codec.sparse.rule == "gates" else ()

    def found(self) -> bool:
        """Return whether a learned threshold leaves as few blocks as will be kept."""
        codec = self._codec
        learned = codec.sparse.rule in ("threshold", "rows")
        return learned and codec.density(self._store.weight) <= codec.sparse.kept / codec.blocks

    def codecs(self) -> Sequence[Codec]:
        return [self._codec]

    def choose(self) -> None:
        self._codec.choose(self._store.weight.detach())


@stages_of.register
def _(part: SparseCodec, site: Site) -> TableStages:
    return MaskStages(part, site)
