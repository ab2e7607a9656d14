"""Sizing, counts, table starts: a run's configuration and what is built from it."""

import pytest
import torch

from experiments.errors import Infeasible, InputError
from experiments.load import check
from experiments.tasks.task import prepare

CPU = torch.device("cpu")
FULL = (300 + 200 + 4 + 24) * 8 * 4


def test_a_share_is_a_share_of_the_full_bytes(small, make_run):
    task = prepare(make_run())
    assert task.full_nbytes == task.model(CPU).nbytes == FULL
    assert task.rows == 528
    half = prepare(make_run(methods=[{"method": "HashingTrick", "share": 0.5}]))
    assert 0.98 * FULL / 2 <= half.model(CPU).nbytes <= FULL / 2


@pytest.mark.parametrize("budget", [{"rows": 40}, {"nbytes": 4000}])
def test_rows_and_bytes_as_given(make_run, budget):
    task = prepare(make_run(methods=[{"method": "DoubleHash", **budget}]))
    if "rows" in budget:
        assert task.rows == 40 * 4
    else:
        assert 3900 <= task.model(CPU).nbytes <= 4000


def test_a_budget_sizes_the_innermost_of_three_methods(make_run):
    inside = {"method": "LowRank", "rank": 4, "of": {"method": "UnifiedEmbedding", "balanced": True, "chunk_dim": 4}}
    task = prepare(make_run(methods=[{"method": "LowBit", "share": 0.1, "options": {"bits": 4, "of": inside}}]))
    assert 0.09 * FULL <= task.model(CPU).nbytes <= 0.1 * FULL
    assert (task.method.bits, task.method.of.rank, task.method.of.of.balanced) == (4, 4, True)
    assert task.method.of.of.rows == task.rows > 50


def test_a_method_inside_keeps_settings_with_the_names_of_the_outer_one(make_run):
    inside = {"method": "LearnedMask", "keep": 0.5, "rule": "rows", "search": 0.25}
    widths = {"method": "LearnedWidths", "share": 0.4, "options": {"rule": "evolution", "search": 0.3, "of": inside}}
    method = prepare(make_run(methods=[widths])).method
    assert (method.rule, method.search, method.of.rule, method.of.search) == ("evolution", 0.3, "rows", 0.25)
    assert prepare(make_run(methods=[widths])).model(CPU).nbytes <= 0.4 * FULL


@pytest.mark.parametrize(
    ("outer", "share", "options", "inside"),
    [
        (
            "FrequencyBits",
            0.08,
            {"mean_bits": 4, "groups": 7},
            {"method": "MixedDimensions", "groups": 3, "alpha": 0.5},
        ),
        ("LearnedWidths", 0.5, {"width": 4}, {"method": "LearnedMask", "rule": "rows", "search": 0.3}),
    ],
)
def test_a_budget_sizes_a_method_inside_with_settings_of_the_outer_ones_names(make_run, outer, share, options, inside):
    task = prepare(make_run(methods=[{"method": outer, "share": share, "options": {**options, "of": inside}}]))
    assert task.method.of.config().items() >= inside.items()
    assert {name: getattr(task.method, name) for name in options} == options
    assert 0.8 * share * FULL <= task.model(CPU).nbytes <= share * FULL


def test_a_method_that_a_budget_sizes_itself_needs_the_one_inside_whole(make_run):
    bits = {"method": "FrequencyBits", "share": 0.05, "options": {"of": {"method": "HashingTrick", "rows": 90}}}
    task = prepare(make_run(methods=[bits]))
    assert (task.method.of.rows, task.rows) == (90, 4 * 90)
    assert 0 < task.method.mean_bits < 6
    for outer, inside in (("FrequencyBits", {"seed": 1}), ("LearnedWidths", {"seed": 1}), ("LearnedWidths", {})):
        options = {"of": {"method": "HashingTrick", **inside}}
        with pytest.raises(InputError, match=r"HashingTrick cannot take its options: .*'rows'"):
            prepare(make_run(methods=[{"method": outer, "share": 0.3, "options": options}]))


def test_a_method_for_each_table(make_run):
    item = {"method": "LowBit", "bits": 2, "of": {"method": "LowRank", "rank": 2}}
    hashed = {"method": "HashingTrick", "options": {"rows": 3}}
    task = prepare(make_run(methods=[{**hashed, "by_table": {"item": item}}]))
    made = {name: type(method).__name__ for name, method in task.method.methods.items()}
    assert made.pop("item") == "LowBit"
    assert set(made.values()) == {"HashingTrick"}
    sizes = [task.method.methods[table.name].sizes([table]).nbytes() for table in task.tables]
    assert task.model(CPU).nbytes == sum(sizes) < FULL
    for bad, message in (
        ({"items": item}, "method.by_table: no feature 'items'; the tables are "),
        ({"item": {"method": "LowBits"}}, r"by_table\.item\.method: unknown method 'LowBits': did you mean 'LowBit'"),
        ({"item": {"bits": 2}}, "by_table.item: name a method and its settings"),
        ({"item": {**item, "bit": 2}}, r"by_table\.item: unknown option 'bit'"),
        ({"item": {**item, "bits": 9}}, "bits"),
    ):
        with pytest.raises(InputError, match=message):
            prepare(make_run(methods=[{**hashed, "by_table": bad}]))
    with pytest.raises(InputError, match=r"by_table: each method has its size in its options; leave share out"):
        make_run(methods=[{"method": "HashingTrick", "share": 0.1, "by_table": {"item": item}}])
    with pytest.raises(InputError, match="by_table: give it without apart"):
        make_run(methods=[{**hashed, "apart": True, "by_table": {"item": item}}])


def test_tables_apart_share_no_store(make_run):
    robe = {"method": "ROBE", "options": {"size": 400, "block": 4}}
    one, apart = prepare(make_run(methods=[robe])), prepare(make_run(methods=[{**robe, "apart": True}]))
    assert apart.rows == 4 * one.rows == 4 * 100
    assert apart.model(CPU).nbytes - one.model(CPU).nbytes == 3 * 400 * 4  # the keys are those of each table in both
    with pytest.raises(InputError, match="apart: each table has the size in the options"):
        make_run(methods=[{"method": "ROBE", "nbytes": 4000, "apart": True}])


def test_an_experiment_of_several_models_runs_each_with_each_method(small):
    small["model"] = [{"name": name, "embedding_dim": 8} for name in ("DCN", "DLRM")]
    small["graph"] = {"user": "user", "item": "item"}
    runs = list(check(small, "small.toml").runs())
    single = list(check({**small, "model": small["model"][0]}, "small.toml").runs())
    assert len(runs) == 2 * len(single) == len({run.name for run in runs})
    assert [run.model.name for run in runs if run.seed == 0] == ["DCN"] * 4 + ["DLRM"] * 4
    small["model"][1]["name"] = "DLR"
    with pytest.raises(InputError, match="unknown model 'DLR': did you mean 'DLRM'"):
        check(small, "small.toml")


def test_counts_come_from_the_training_rows(make_run):
    task = prepare(make_run(methods=[{"method": "FrequencyHash", "share": 0.3}]))
    train = task.data.split("train").collect()["item"].to_numpy()
    assert torch.equal(task.method.counts["item"], torch.bincount(torch.tensor(train), minlength=200))


def test_tables_start_as_configured(make_run):
    uniform = prepare(make_run(model={"init_uniform": 0.05})).model(CPU)
    for table in uniform.embeddings.parameters():
        assert 0.04 < table.detach().abs().max() <= 0.05
    normal = prepare(make_run(model={"init_uniform": None, "init_normal": 1e-4})).model(CPU)
    values = torch.cat([table.detach().flatten() for table in normal.embeddings.parameters()])
    assert values.std().item() == pytest.approx(1e-4, rel=0.1)


def test_a_seed_is_a_start(make_run):
    task = prepare(make_run())
    first, again = (task.model(CPU).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first if not name.endswith("_extra_state"))
    other = prepare(make_run(seeds=[5])).model(CPU).model.state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first if not name.endswith("_extra_state"))


def test_first_order_weights_are_counted_and_paid_from_the_budget(make_run):
    full = prepare(make_run(model={"name": "DeepFM", "linear": True, "options": {"hidden": [8]}}))
    assert full.full_nbytes == full.model(CPU).nbytes == FULL + 528 * 4
    half = prepare(make_run(methods=[{"method": "HashingTrick", "share": 0.5}]))
    assert 0.98 * full.full_nbytes / 2 <= half.model(CPU).nbytes <= full.full_nbytes / 2


def test_a_budget_too_small_is_infeasible(make_run):
    with pytest.raises(Infeasible, match="too small"):
        prepare(make_run(methods=[{"method": "HashingTrick", "nbytes": 100}]))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            {"method": "MultiHash", "options": {"combine": "max"}, "share": 0.1},
            "combine: input should be 'sum' or 'concat'",
        ),
        ({"method": "UnifiedEmbedding", "options": {"chunk_dim": 3}, "share": 0.1}, "not a multiple of chunk_dim"),
        (
            {"method": "UnifiedEmbedding", "options": {"chunk_dim": "wide"}, "share": 0.1},
            "chunk_dim: input should be a valid",
        ),
    ],
)
def test_options_that_no_budget_helps_are_input_errors(make_run, method, message):
    with pytest.raises(InputError, match=message):
        prepare(make_run(methods=[method]))


def test_what_the_model_rejects_is_an_input_error(make_run):
    task = prepare(make_run(model={"options": {"cross_layers": 0}}))
    with pytest.raises(InputError, match="model 'DCN': cross_layers is 0"):
        task.model(CPU)


def test_missing_data_is_an_input_error(make_run, monkeypatch, tmp_path):
    monkeypatch.setenv("EMBCOMP_DATA", str(tmp_path))
    run = make_run(data={"name": "frappe", "options": {}})
    with pytest.raises(InputError, match="data 'frappe': no file"):
        prepare(run)


def test_slices_need_a_feature_with_one_id_a_row(make_run):
    data = {"options": {"num_rows": 3000, "num_users": 100, "num_items": 100, "tags": True}}
    for feature, message in [("film", "no feature 'film'; there are user, item"), ("tags", "'tags' is multi-hot")]:
        with pytest.raises(InputError, match=rf"slices\.new\.feature: {message}"):
            prepare(make_run(data=data, slices={"new": {"feature": feature}}))
