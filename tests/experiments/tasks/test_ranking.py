"""Recall and NDCG against a double loop in plain Python."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from experiments.errors import Diverged
from experiments.tasks.ranking import rank_metrics


class Fixed(nn.Module):
    """Scores as given, [num_users, num_items]."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def scorer(self, items):
        return lambda users: self.scores[users][:, items]


def by_hand(scores, known, wanted, ks):
    """Means over users of hits / min(k, n), and of DCG over the best DCG."""
    sums = {f"{metric}@{k}": [] for metric in ("recall", "ndcg") for k in ks}
    for user, row in enumerate(scores.tolist()):
        items = [item for u, item in wanted if u == user]
        if not items:
            continue
        candidates = [item for item in range(len(row)) if (user, item) not in known]
        ranked = sorted(candidates, key=lambda item: -row[item])
        for k in ks:
            hits = [place for place, item in enumerate(ranked[:k], 1) if item in items]
            sums[f"recall@{k}"].append(len(hits) / min(k, len(items)))
            best = sum(1 / math.log2(place + 1) for place in range(1, min(k, len(items)) + 1))
            sums[f"ndcg@{k}"].append(sum(1 / math.log2(place + 1) for place in hits) / best)
    return {name: sum(values) / len(values) for name, values in sums.items()}


@settings(max_examples=60)
@given(st.data())
def test_a_full_ranking_by_hand(data):
    users, items = data.draw(st.integers(1, 12)), data.draw(st.integers(2, 15))
    scores = torch.rand(users, items, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 9))))
    every = st.tuples(st.integers(0, users - 1), st.integers(0, items - 1))
    wanted = data.draw(st.sets(every, min_size=1))
    known = data.draw(st.sets(every)) - wanted
    ks = (1, 3, 20)
    pairs = [torch.tensor(sorted(part), dtype=torch.int64).reshape(-1, 2).T for part in (known, wanted)]
    found = rank_metrics(Fixed(scores), *pairs, items, data.draw(st.integers(1, 13)), ks)
    assert found == pytest.approx(by_hand(scores, known, wanted, ks), abs=1e-12)


def test_ties_do_not_fall_by_id():
    """All items alike: the top holds as many of the lower half of the ids as of the upper."""
    for half in (torch.arange(500), torch.arange(500, 1000)):
        wanted = torch.stack([torch.zeros_like(half), half])
        found = rank_metrics(Fixed(torch.zeros(1, 1000)), wanted[:, :0], wanted, 1000, 8, ks=(100,))
        assert 0.35 < found["recall@100"] < 0.65


def test_the_model_is_left_as_it_was():
    model = Fixed(torch.rand(3, 4)).train()
    one = torch.tensor([[0], [1]])
    rank_metrics(model, one, one.flip(1), 4, 8)
    assert model.training


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_said(bad):
    scores = torch.rand(3, 40)
    scores[1, 7] = bad
    one = torch.tensor([[1], [2]])
    with pytest.raises(Diverged, match="lower the learning rate"):
        rank_metrics(Fixed(scores), torch.tensor([[1], [3]]), one, 40, 8)
