"""The contrastive loss against its dense form, with a tensor of all pairs, and without one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from recsys_models import multi_positive_loss


def dense(first, second, groups, temperature):
    """Khosla et al. 2020, equation 2, with all pairs at once."""
    logits = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / temperature
    positive = (groups[:, None] == groups[None]).to(logits)
    ways = [each.log_softmax(1) for each in (logits, logits.T)]
    return -sum(((way * positive).sum(1) / positive.sum(1)).mean() for way in ways) / 2


@settings(max_examples=40)
@given(
    n=st.integers(1, 20), groups=st.integers(1, 9), block=st.integers(1, 25), t=st.sampled_from([0.1, 0.5, 2.0]),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_it_is_the_dense_form_with_its_gradients(n, groups, block, t, seed):
    draw = torch.Generator().manual_seed(seed)
    vectors = [torch.randn(n, 4, generator=draw, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    of = torch.randint(groups, (n,), generator=draw) * 1000
    losses = multi_positive_loss(*vectors, of, t, block), dense(*vectors, of, t)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, vectors) for loss in losses))


class Largest(TorchDispatchMode):
    """The most elements of a tensor that any operation makes."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = [item.numel() for item in tree_iter(made) if isinstance(item, torch.Tensor)]
        self.most = max(self.most, *sizes, 0)
        return made


def test_no_tensor_of_all_pairs_is_made():
    n = 500
    vectors = [torch.randn(n, 8, requires_grad=True) for _ in range(2)]
    with Largest() as seen:
        multi_positive_loss(*vectors, torch.arange(n) % 60, block=16).backward()
    assert seen.most == 16 * n
    with Largest() as seen:
        dense(*vectors, torch.arange(n) % 60, 0.5).backward()
    assert seen.most == n * n


@pytest.mark.parametrize(
    ("shapes", "temperature", "message"),
    [
        ([(3, 2), (3, 4), (3,)], 1.0, r"first \[3, 2\], second \[3, 4\]"),
        ([(3, 2), (3, 2), (2,)], 1.0, r"groups \[2\]"),
        ([(0, 2), (0, 2), (0,)], 1.0, "do not fit"),
        ([(3, 2), (3, 2), (3,)], 0.0, "temperature is 0.0"),
    ],
)
def test_what_does_not_fit_is_said(shapes, temperature, message):
    first, second, groups = map(torch.zeros, shapes)
    with pytest.raises(ValueError, match=message):
        multi_positive_loss(first, second, groups.long(), temperature)
