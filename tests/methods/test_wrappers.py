"""Methods around methods around methods: what the parts do alone, they do together."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn

import embcomp
from embcomp import FrequencyBits, HashingTrick, LowBit, LowRank, Method, ProductCodes
from embcomp.nn import CompressedEmbeddingBag
from embcomp.testing.drop_ins import randomize

AROUND: dict[str, Callable[[Method], Method]] = {
    "bits": lambda of: LowBit(bits=4, of=of),
    "codes": lambda of: ProductCodes(parts=2, codes=16, of=of),
    "rank": lambda of: LowRank(rank=4, of=of),
}
CODED = {"bits", "codes"}  # a store has one coding
PAIRS = list(itertools.product(AROUND, AROUND))
IDS = torch.arange(100)


def made(outer: str, inner: str) -> Method:
    return AROUND[outer](AROUND[inner](HashingTrick(rows=40)))


@pytest.mark.parametrize(("outer", "inner"), [pair for pair in PAIRS if not set(pair) <= CODED])
def test_wrappers_compose(outer: str, inner: str) -> None:
    method = made(outer, inner)
    bag = randomize(CompressedEmbeddingBag(100, 16, method, mode="sum")).eval()
    singles = bag.materialize()
    assert singles.shape == (100, 16)
    torch.testing.assert_close(bag(IDS.view(20, 5)), singles.view(20, 5, 16).sum(1), atol=1e-4, rtol=1e-4)
    if "rank" in (outer, inner):
        assert torch.linalg.matrix_rank(singles) <= 4
    plan = method.plan([embcomp.Table("t", 100, 16)])
    assert plan.training_nbytes() == embcomp.nbytes(bag)
    assert plan.served_nbytes() == embcomp.served_nbytes(bag)


@pytest.mark.parametrize(("outer", "inner"), [pair for pair in PAIRS if not set(pair) <= CODED])
def test_wrappers_start_warm_together(outer: str, inner: str) -> None:
    model = nn.ModuleDict({"item": nn.Embedding(100, 16)})
    trained = torch.randn(100, 3) @ torch.randn(3, 16)
    with torch.no_grad():
        model["item"].weight.copy_(trained)
    embcomp.compress_(model, AROUND[outer](AROUND[inner](embcomp.Full())), init="warm")
    with torch.no_grad():
        lost = (model["item"].eval()(IDS) - trained).square().mean() / trained.square().mean()
    assert float(lost) < 0.2  # rank 4 holds it exactly; 4 bits and 16 codes round


@pytest.mark.parametrize(("outer", "inner"), [pair for pair in PAIRS if set(pair) <= CODED])
def test_rows_are_coded_once(outer: str, inner: str) -> None:
    with pytest.raises(ValueError, match=r"table 't': its rows are coded already .*; put \w+ around a method that"):
        made(outer, inner).plan([embcomp.Table("t", 100, 16)])


LEARNED = {
    "mask": embcomp.LearnedMask(keep=0.5),
    "widths": embcomp.LearnedWidths(width=4),
    "both": embcomp.LearnedWidths(width=4, of=embcomp.LearnedMask(keep=0.5, rule="rows")),
}
CODERS = {
    **{name: AROUND[name] for name in sorted(CODED)},
    "groups": lambda of: FrequencyBits(counts=IDS, groups=4, of=of),
}
FIXED = {
    "mask": embcomp.Pruned(keep=0.5, vectors=torch.ones(100, 16), block=4),
    "widths": embcomp.MixedDimensions(base=60, alpha=1.0, groups=3, counts=IDS, multiple=4),
}


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("learned", LEARNED)
def test_rows_that_learn_what_is_kept_are_refused_with_a_remedy(coder: str, learned: str) -> None:
    tables = [embcomp.Table("t", 100, 16)]
    text = r"table 't': (\w+) cannot code rows that learn .*: leave one of the two .* put \1 around Pruned or Mixed"
    with pytest.raises(ValueError, match=text):
        CODERS[coder](LEARNED[learned]).sizes(tables)


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("fixed", FIXED)
def test_the_remedy_works(coder: str, fixed: str) -> None:
    method = CODERS[coder](FIXED[fixed])
    assert CompressedEmbeddingBag(100, 16, method, mode="sum")(IDS.view(20, 5)).shape == (20, 16)
