"""Recall of every mixture against a loop over users."""

import pytest
import torch

import embcomp


def recall(queries, items, wanted, known, k):
    """By hand, one user after the other."""
    shares = []
    for user in sorted(set(wanted[0].tolist())):
        scores = {i: float(queries[user] @ items[i]) for i in range(len(items))}
        for u, i in known.T.tolist():
            if u == user:
                scores[i] = float("-inf")
        best = sorted(scores, key=scores.__getitem__, reverse=True)[:k]
        mine = wanted[1][wanted[0] == user].tolist()
        shares.append(sum(i in best for i in mine) / min(k, len(mine)))
    return sum(shares) / len(shares)


def test_each_cell_is_the_recall_of_that_mixture():
    torch.manual_seed(0)
    new, old = (torch.randn(13, 5), torch.randn(21, 5)), (torch.randn(11, 5), torch.randn(20, 5))
    pairs = torch.stack([torch.randint(11, (40,)), torch.randint(20, (40,))]).unique(dim=1)
    known, wanted = pairs[:, ::2], pairs[:, 1::2]
    found = embcomp.compatible(new, old, wanted, known=known, k=4)
    (nq, ni), (oq, oi) = [(q[:11], i[:20]) for q, i in (new, old)]
    for value, queries, items in (
        (found.new_new, nq, ni),
        (found.new_old, nq, oi),
        (found.old_new, oq, ni),
        (found.old_old, oq, oi),
    ):
        assert value == pytest.approx(recall(queries, items, wanted, known, 4), abs=1e-6)


def test_ids_that_only_one_training_has_are_left_out():
    torch.manual_seed(0)
    new, old = (torch.randn(9, 4), torch.randn(30, 4)), (torch.randn(7, 4), torch.randn(20, 4))
    pairs = torch.tensor([[0, 1, 8, 2], [3, 29, 4, 5]])
    assert embcomp.compatible(new, old, pairs) == embcomp.compatible(new, old, pairs[:, [0, 3]])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"k": 0}, "k=0 items"),
        ({"k": 100}, "20 are common"),
        ({"queries": torch.tensor([[50], [50]])}, "no pair of ids that both"),
        ({"queries": torch.tensor([[0.5], [1.0]])}, r"queries must be pairs, integers \[2, E\]"),
        ({"new": (torch.randn(5, 3), torch.randn(20, 4))}, r"widths \[3, 4\]"),
        ({"old": (torch.full((5, 4), torch.nan), torch.randn(20, 4))}, "old holds NaN"),
    ],
)
def test_bad_arguments_are_named(change, error):
    good = {
        "new": (torch.randn(5, 4), torch.randn(20, 4)),
        "old": (torch.randn(5, 4), torch.randn(20, 4)),
        "queries": torch.tensor([[0, 1], [3, 4]]),
    }
    with pytest.raises(ValueError, match=error):
        embcomp.compatible(**{**good, **change})
