import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from recsys_models.layers import (
    ACTIVATIONS,
    MLP,
    DotInteraction,
    FirstOrder,
    MatrixCross,
    MixtureCross,
    VectorCross,
    fm_interaction,
)

SHAPES = {
    "batch": st.integers(0, 4),
    "vectors": st.integers(1, 6),
    "dim": st.integers(1, 5),
    "seed": st.integers(0, 99),
}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def randomize(module: nn.Module) -> nn.Module:
    """Biases start at zero, where an error in them would not show."""
    for i, parameter in enumerate(module.parameters()):
        parameter.data = normal(*parameter.shape, seed=i)
    return module


@given(**SHAPES)
def test_fm_interaction_sums_the_inner_products_of_all_pairs(batch, vectors, dim, seed):
    x = normal(batch, vectors, dim, seed=seed)
    expected = [
        sum(
            sum(float(row[i][k]) * float(row[j][k]) for k in range(dim))
            for i, j in itertools.combinations(range(vectors), 2)
        )
        for row in x
    ]
    torch.testing.assert_close(fm_interaction(x), torch.tensor(expected, dtype=torch.float64))


@given(**SHAPES)
def test_dot_interaction_lists_the_inner_product_of_each_pair(batch, vectors, dim, seed):
    x = normal(batch, vectors, dim, seed=seed)
    layer = DotInteraction(vectors)
    pairs = list(itertools.combinations(range(vectors), 2))
    expected = torch.tensor(
        [[sum(float(row[i][k]) * float(row[j][k]) for k in range(dim)) for i, j in pairs] for row in x],
        dtype=torch.float64,
    )
    assert layer.out_features == len(pairs)
    torch.testing.assert_close(layer(x), expected.reshape(batch, len(pairs)))


def test_vector_cross_is_the_outer_product_form_of_the_paper():
    # x_{l+1} = x_0 x_l^T w_l + b_l + x_l, column vectors, one row at a time.
    x0 = normal(3, 5)
    layers = [randomize(VectorCross(5)) for _ in range(3)]
    ours = x0
    for layer in layers:
        ours = layer(x0, ours)
    for row, result in zip(x0, ours, strict=True):
        x = row[:, None]
        for layer in layers:
            x = row[:, None] @ x.T @ layer.weight.weight.T + layer.bias[:, None] + x
        torch.testing.assert_close(result, x[:, 0])


@pytest.mark.parametrize("low_rank", [None, 2])
def test_matrix_cross_is_the_equation_entry_by_entry(low_rank):
    x0, x = normal(3, 4), normal(3, 4, seed=1)
    layer = randomize(MatrixCross(4, low_rank))
    if low_rank is None:
        w, b = layer.weight.weight, layer.weight.bias
    else:
        v_transposed, u = layer.weight[0].weight, layer.weight[1].weight
        assert u.shape == (4, 2)
        assert v_transposed.shape == (2, 4)
        w, b = u @ v_transposed, layer.weight[1].bias
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for n, i in itertools.product(range(3), range(4)):
        expected[n, i] = x0[n, i] * (sum(w[i, j] * x[n, j] for j in range(4)) + b[i]) + x[n, i]
    torch.testing.assert_close(layer(x0, x), expected)


def test_mixture_cross_sums_gated_experts():
    x0, x = normal(3, 4), normal(3, 4, seed=1)
    layer = randomize(MixtureCross(4, low_rank=2, experts=3))
    for row0, row, result in zip(x0, x, layer(x0, x), strict=True):
        scores = torch.exp(layer.gate.weight @ row)
        expected = row.clone()
        for i in range(3):
            inner = torch.tanh(layer.v[i].T @ row)
            inner = torch.tanh(layer.c[i].T @ inner)
            expert = row0 * (layer.u[i].T @ inner + layer.bias)
            expected += scores[i] / scores.sum() * expert
        torch.testing.assert_close(result, expected)


def test_first_order_without_inputs_is_a_bias():
    layer = FirstOrder(0)
    layer.bias.data.fill_(0.5)
    assert layer(torch.zeros(3, 0)).tolist() == [0.5] * 3


def test_mlp_layers_in_order():
    kinds = [type(layer) for layer in MLP(3, [5, 4], 2, activation="tanh", dropout=0.1, batch_norm=True)]
    hidden = [nn.Linear, nn.BatchNorm1d, nn.Tanh, nn.Dropout]
    assert kinds == [*hidden, *hidden, nn.Linear]
    assert [type(layer) for layer in MLP(3, [5])] == [nn.Linear, nn.ReLU]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_is_what_functional_torch_gives(activation):
    mlp = randomize(MLP(3, [5], 2, activation=activation))
    x = normal(4, 3)
    w1, b1, *slope, w2, b2 = mlp.parameters()
    act = {
        "prelu": lambda h: nn.functional.prelu(h, *slope),
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }.get(activation) or getattr(nn.functional, activation)
    torch.testing.assert_close(mlp(x), act(x @ w1.T + b1) @ w2.T + b2)


@pytest.mark.parametrize(("hidden", "out", "width"), [([], None, 3), ([], 2, 2), ([7], None, 7), ([7], 1, 1)])
def test_mlp_out_features(hidden, out, width):
    mlp = MLP(3, hidden, out)
    assert mlp.out_features == width
    assert mlp(torch.zeros(2, 3)).shape == (2, width)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"activation": "rellu"}, "'rellu'.*relu"), ({"hidden": [4, 0]}, "width 0"), ({"dropout": -0.5}, "-0.5")],
)
def test_mlp_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        MLP(3, **{"hidden": [4], **options})
