"""torch's averages of weights, SWA and EMA, on models with compressed tables: ids keep their rows."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import swa_utils
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

from embcomp.methods import Table
from embcomp.sdim import SDIM
from embcomp.testing.drop_ins import N, embedding
from embcomp.testing.example import Example
from embcomp.testing.examples import EXAMPLES
from embcomp.torchrec import CompressedEmbeddingBagCollection

KINDS = {
    "default": {},
    "swa": {"multi_avg_fn": swa_utils.get_swa_multi_avg_fn()},
    "ema": {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.9)},
    "one by one": {"avg_fn": swa_utils.get_ema_avg_fn(0.9)},
    "own": {"avg_fn": lambda averaged, current, n: 0.9 * averaged + 0.1 * current},
}
TABLE = EmbeddingBagConfig(name="t", num_embeddings=N, embedding_dim=8, feature_names=["f"])
BATCH = KeyedJaggedTensor(["f"], torch.arange(N), lengths=torch.ones(N, dtype=torch.int64))


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_an_average_of_equal_models_reads_the_same_rows(example: Example) -> None:
    bags = CompressedEmbeddingBagCollection([TABLE], {"*": example.make([Table("t", N, 8)])})
    for module, args in ((embedding(example).eval(), (torch.arange(N),)), (bags.eval(), (BATCH,))):
        state = copy.deepcopy(module.state_dict())
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        for settings in KINDS.values():
            for use_buffers in (True, False):
                averaged = swa_utils.AveragedModel(module, use_buffers=use_buffers, **settings)
                for _ in range(3):
                    averaged.update_parameters(module)
                out, expected = averaged(*args), module(*args)
                if module is bags:
                    out, expected = out.values(), expected.values()
                torch.testing.assert_close(out, expected)
                for name, buffer in averaged.module.named_buffers():
                    assert torch.equal(buffer, buffers[name])
        assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())
        assert {name: buffer.shape for name, buffer in module.named_buffers()} == {
            n: b.shape for n, b in buffers.items()
        }


def test_weights_and_statistics_are_averaged_as_before() -> None:
    """Against torch on the same model without tables, and the mean worked out by hand."""
    (example,) = (e for e in EXAMPLES if e.name == "GraphHash")
    model = nn.ModuleDict({"item": embedding(example), "norm": nn.BatchNorm1d(3), "sdim": SDIM(8)})
    averaged = swa_utils.AveragedModel(model, use_buffers=True)
    rows, means = [], []
    for _ in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
            model["norm"].running_mean.add_(torch.randn(3))
        averaged.update_parameters(model)
        rows.append(next(model["item"].parameters()).detach().clone())
        means.append(model["norm"].running_mean.clone())
    mean = averaged.module
    torch.testing.assert_close(next(mean["item"].parameters()).detach(), torch.stack(rows).mean(0))
    torch.testing.assert_close(mean["norm"].running_mean, torch.stack(means).mean(0))
    for mine, theirs in zip(mean["sdim"].buffers(), model["sdim"].buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_an_error_leaves_the_buffers_in_place() -> None:
    (example,) = (e for e in EXAMPLES if e.name == "GraphHash")
    module = embedding(example)
    averaged = swa_utils.AveragedModel(module, use_buffers=True, avg_fn=lambda *args: 1 / 0)
    averaged.update_parameters(module)
    before = dict(module.named_buffers())
    with pytest.raises(ZeroDivisionError):
        averaged.update_parameters(module)
    assert all(buffer is before[name] for name, buffer in module.named_buffers())
    assert list(dict(averaged.module.named_buffers())) == list(before)


@pytest.mark.parametrize("make", [lambda: embedding(EXAMPLES[1]), lambda: SDIM(8)])
def test_a_configuration_that_was_averaged_is_refused(make) -> None:
    """As a mean over whole states does."""
    module = make()
    state = module.state_dict()
    (key,) = (key for key in state if key.endswith("_extra_state"))
    for wrong in (state[key] / 2, state[key] // 2, state[key].reshape(1, -1), 3):
        with pytest.raises(ValueError, match=r"(table 'embedding'|SDIM): the configuration in the state.*floating-poi"):
            module.load_state_dict({**state, key: wrong})
    module.load_state_dict(state)
