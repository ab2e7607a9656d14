"""What FBGEMM does not have is refused by name, with the remedy; what it has is what its class accepts."""

import pytest
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen

from embcomp.ops.optimizers import RULES, FusedOptimizerSettings
from embcomp.torchrec.fused.fbgemm import check_fbgemm_scale, fbgemm_lacks, fbgemm_settings, fbgemm_type
from embcomp.torchrec.fused.loss_scale import LossScale

ON_CPU = ("sgd", "adagrad", "rowwise_adagrad")


@pytest.mark.parametrize("name", RULES)
def test_on_cpu_it_has_what_its_class_accepts(name):
    settings = FusedOptimizerSettings(name, 0.1)
    lacks, table = fbgemm_lacks(settings, on_gpu=False), (5, 8, EmbeddingLocation.HOST, ComputeDevice.CPU)
    if lacks is None:
        SplitTableBatchedEmbeddingBagsCodegen([table], **fbgemm_settings(settings, on_gpu=False))
        assert name in ON_CPU
        return
    assert lacks.startswith(f"FBGEMM has no {name} on a CPU; take float32 tables")
    with pytest.raises(AssertionError, match="not supported in CPU mode"):
        SplitTableBatchedEmbeddingBagsCodegen([table], optimizer=fbgemm_type(settings))


@pytest.mark.parametrize(
    ("name", "setting", "said"),
    [
        ("sgd", {"momentum": 0.9}, "no momentum for sgd; use momentum=0"),
        ("adam", {"lazy": False}, "the rows alone that a batch reads; leave lazy=True"),
        ("adam", {"weight_decay": 0.1}, "is beside the gradient; take torch.optim.AdamW"),
        ("adagrad", {"weight_decay": 0.1}, "no weight_decay for adagrad on a GPU"),
        ("sgd", {"clip_grad_value": 1.0}, "leave clip_grad_value and clip_grad_norm out"),
        ("rowwise_adagrad", {"clip_grad_norm": 1.0}, "leave clip_grad_value and clip_grad_norm out"),
    ],
)
def test_what_it_would_ignore_on_a_gpu(name, setting, said):
    settings = FusedOptimizerSettings(name, 0.1, **setting)
    with pytest.raises(ValueError, match=said):
        fbgemm_settings(settings, on_gpu=True)


@pytest.mark.parametrize("name", RULES)
def test_what_it_is_given_on_a_gpu(name):
    decays = name not in ("sgd", "adagrad")
    settings = FusedOptimizerSettings(
        name, 0.1, 1e-4, 0.2 if decays else 0.0, betas=(0.8, 0.9), decoupled=name == "adam"
    )
    given = fbgemm_settings(settings, on_gpu=True)
    wanted = {"learning_rate": 0.1, "eps": 1e-4, "beta1": 0.8, "beta2": 0.9, "weight_decay": 0.2}
    known = {key: value for key, value in given.items() if key in wanted}
    assert known == {key: wanted[key] for key in known}
    assert known.keys() >= ({"learning_rate"} | ({"eps"} if name != "sgd" else set()))
    assert ("beta1" in known) == (name not in ON_CPU)
    assert ("weight_decay" in known) == decays


def test_a_scaler_is_refused_where_rows_would_move_in_a_step_that_overflows():
    scaled, unscaled = LossScale(torch.amp.GradScaler("cpu")), LossScale(torch.amp.GradScaler("cpu", enabled=False))
    adam, decayed = FusedOptimizerSettings("adam", 0.1), FusedOptimizerSettings("rowwise_adagrad", 0.1, 1e-8, 0.1)
    for settings, why in ((adam, "momentum"), (decayed, "weight_decay")):
        with pytest.raises(ValueError, match=f"moves rows by their {why}.*bfloat16"):
            check_fbgemm_scale(settings, scaled)
        check_fbgemm_scale(settings, unscaled)
    check_fbgemm_scale(FusedOptimizerSettings("adagrad", 0.1), scaled)
