"""The checks that every byte is counted, and that budgets are filled and never exceeded."""

import dataclasses
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import embcomp
from embcomp.methods import Full, GraphHash, LSHash, QuotientRemainder, Table
from embcomp.settings import hints_of
from embcomp.testing.checks.check import check
from embcomp.testing.drop_ins import D, N, embedding
from embcomp.testing.example import Example


@check
def bytes_count_every_parameter_and_buffer(example: Example) -> None:
    """Check that `nbytes` is the sum over all tensors, and equals the bytes of the plan before anything was built."""
    module = embedding(example)
    tensors = [*module.parameters(), *module.buffers()]
    assert embcomp.nbytes(module) == sum(t.numel() * t.element_size() for t in tensors)
    tables = [Table("embedding", N, D)]
    assert embcomp.nbytes(module) == example.make(tables).plan(tables).nbytes()
    assert embcomp.nbytes(module) == embcomp.nbytes(embedding(example, device="meta"))
    half = embedding(example, dtype=torch.float16)
    rows = sum(parameter.nbytes for parameter in module.parameters())
    assert embcomp.nbytes(half) == embcomp.nbytes(module) - rows // 2
    state = sum(t.nbytes for name, t in module.state_dict().items() if not name.endswith("_extra_state"))
    assert state <= embcomp.nbytes(module)


TABLES = st.lists(st.tuples(st.integers(1, 3000), st.sampled_from([8, 16])), min_size=1, max_size=3)


@check
def budgets_are_filled_and_never_exceeded(example: Example) -> None:
    """Check the served bytes of the built model, not of the plan; a gap of one row for each table is allowed.

    Methods that are `sized_in_steps` leave more: `LowRank` has one size for each rank, `QuotientRemainder` none below
    its smallest pair and none above its largest; between them one more row may need fewer of the other table.
    `GraphHash` and its variants have the size of the given clusters (tests/methods/test_graphhash.py fills budgets from
    edges).
    """

    @settings(max_examples=5)
    @given(TABLES, st.floats(0.01, 1.2), st.floats(1.0, 2.0))
    def inner(chosen: str, sizes: list[tuple[int, int]], share: float, more: float) -> None:
        tables = [Table(f"t{i}", n, dim) for i, (n, dim) in enumerate(sizes)]
        method = example.make(tables)
        fixed = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
        fixed.pop(chosen, None)
        full = sum(n * dim * 4 for n, dim in sizes)

        def built(budget: int) -> int:
            sized = type(method).for_budget(tables, budget, **fixed)
            assert sized.sizes(tables) == sized.plan(tables).sizes  # numbers alone, and those of the plan
            if isinstance(sized, Full):
                return sized.plan(tables).served_nbytes()
            model = nn.ModuleDict({t.name: nn.Embedding(t.num_embeddings or 0, t.embedding_dim) for t in tables})
            report = embcomp.compress_(model, {"*": sized})
            assert report.bytes_after == embcomp.nbytes(model) == sized.plan(tables).nbytes()
            plan = sized.plan(tables)
            served, planned = embcomp.served_nbytes(model), plan.served_nbytes()
            bound = any(store.coding is not None and store.coding.bound for store in plan.stores.values())
            assert served <= planned if bound else served == planned
            return planned

        with pytest.raises(ValueError, match=r"budget of 0 bytes is too small.* \d+ bytes") as refused:
            built(0)
        least = int(re.findall(r"(\d+) bytes", str(refused.value))[-1])
        chain: list[Any] = [method]  # and what wrappers are around
        while hasattr(chain[-1], "of"):
            chain.append(chain[-1].of)
        # Steps of two rows each: a pair of as many rows may need fewer of them than the smallest remainder table's.
        paired = any(isinstance(each, QuotientRemainder) for each in chain[1:])
        assert built(least) <= least if paired else built(least) == least
        with pytest.raises(ValueError, match=f"budget of {least - 1} bytes.*{least} bytes"):
            built(least - 1)
        budget = max(least, int(share * full))
        stored = built(budget)
        assert stored <= budget
        assert stored <= built(int(budget * more))
        one_size = any(isinstance(each, GraphHash) and getattr(each, "rows", None) is None for each in chain)
        if not one_size and not any(each.sized_in_steps for each in chain):
            row = sum(16 * 4 + 16 for _ in tables)  # the widest row, and the place of an owned id
            if any(isinstance(each, LSHash) for each in chain):  # whose packed map takes a bit more for each id at 2^k
                row += sum(n // 8 + 1 for n, _ in sizes)
            assert budget - stored <= max(0.02 * budget, row)

    cls = type(example.make([Table("embedding", N, D)]))
    inside = {"rows"} if "of" in hints_of(cls) else set()  # a wrapper with its own size chooses that of what is inside
    for chosen in {cls.sized_by} | inside:
        inner(chosen)
