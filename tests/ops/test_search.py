"""Halving by plain operations against torch.searchsorted."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embcomp.ops.search import _halving, lower_bound

NUMBERS = st.lists(st.integers(0, 60) | st.just(2**31 - 1), max_size=40, unique=True)


@settings(deadline=None, max_examples=40)
@given(numbers=NUMBERS, dtype=st.sampled_from([torch.int32, torch.int64]))
def test_halving_is_searchsorted(numbers: list[int], dtype: torch.dtype) -> None:
    found = torch.tensor(sorted(numbers), dtype=dtype)
    wanted = torch.cat([torch.arange(-1, 62), torch.tensor([2**31 - 1, torch.iinfo(dtype).max])]).to(dtype)
    assert torch.equal(_halving(found, wanted), torch.searchsorted(found, wanted))


def test_exported_graphs_have_no_searchsorted() -> None:
    class Search(torch.nn.Module):
        def forward(self, numbers: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
            return lower_bound(numbers, wanted)

    numbers, wanted = torch.tensor([2, 4, 9]), torch.arange(11)
    program = torch.export.export(Search(), (numbers, wanted))
    assert "searchsorted" not in program.graph_module.code
    assert torch.equal(program.module()(numbers, wanted), torch.searchsorted(numbers, wanted))
