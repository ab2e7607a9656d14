"""Experiments as TOML: what is accepted, and what is said of the rest."""

from pathlib import Path

import pytest

from experiments.errors import InputError
from experiments.load import CONFIGS, check, find, load


def test_runs_are_methods_times_budgets_times_seeds(experiment):
    runs = list(experiment.runs())
    assert [(run.method.method, run.budget, run.seed) for run in runs] == [
        ("Full", None, 0),
        ("HashingTrick", ("share", 0.5), 0),
        ("HashingTrick", ("share", 0.1), 0),
        ("FrequencyHash", ("share", 0.2), 0),
        ("Full", None, 1),
        ("HashingTrick", ("share", 0.5), 1),
        ("HashingTrick", ("share", 0.1), 1),
    ]
    assert len({run.name for run in runs}) == len(runs)


def test_optimizer_settings_are_swept(small):
    small["optimizer"] = {"lr": [0.01, 0.1], "embedding_lr": [1.0], "weight_decay": [0.0, 1e-6]}
    small["methods"] = [{"method": "Full"}, {"method": "HashingTrick", "share": 0.5}]
    runs = list(check(small, "anywhere").runs())
    assert len(runs) == 2 * 4 * 2
    assert [run.name for run in runs[:3]] == [
        "synthetic-Full-lr=0.01-weight_decay=0.0-seed0",
        "synthetic-HashingTrick-lr=0.01-weight_decay=0.0-share0.5-seed0",
        "synthetic-Full-lr=0.01-weight_decay=1e-06-seed0",
    ]
    assert {(run.optimizer.lr, run.optimizer.embedding_lr) for run in runs} == {(0.01, 1.0), (0.1, 1.0)}
    assert runs[0].label == "Full, lr=0.01, weight_decay=0.0"
    assert runs[0].to_dict()["optimizer"]["lr"] == 0.01
    small["optimizer"] = [{"name": "Adam"}, {"name": "SGD", "lr": [0.1, 1.0]}]
    assert len({run.name for run in check(small, "anywhere").runs()}) == 2 * 3 * 2
    for empty in ({"lr": []}, []):
        small["optimizer"] = empty
        with pytest.raises(InputError, match=r"optimizer: .*at least 1 item"):
            check(small, "anywhere")


def test_data_may_take_the_seed_of_the_run(small):
    small["data"]["options"] = {**small["data"].get("options", {}), "seed": "run"}
    runs = list(check(small, "anywhere").runs())
    assert {run.data.options["seed"] == run.seed for run in runs} == {True}
    assert len({run.seed for run in runs}) > 1


def test_a_file_gives_what_its_values_give(toml, small):
    assert load(toml()) == check(small, "anywhere")


def test_the_name_of_the_file_is_the_experiment(toml, small):
    del small["experiment"]
    assert load(toml("other.toml", small)).experiment == "other"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_committed_experiments_are_valid(path):
    assert list(load(path).runs())


def test_malformed_toml_names_the_file_and_the_line(toml):
    path = toml(lines="seeds = [0\nmodel = 3\n")
    with pytest.raises(InputError, match=rf"{path}: not valid TOML: .*line 2"):
        load(path)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("training", {"batchsize": 3}, "unknown key 'training.batchsize': did you mean 'batch_size'?"),
        ("training", {"batch_size": "many"}, "training.batch_size: .*integer.*'many'"),
        ("training", {"epochs": 0}, "training.epochs: .*greater than or equal to 1"),
        ("training", {"epochs": True}, "training.epochs"),
        ("training", {"monitor": "valid/acu"}, "training.monitor: .*'valid/auc'"),
        ("optimizer", {"name": "Adamm"}, "optimizer.name: .*'Adam'"),
        ("data", {"name": "movielens"}, "data.name: unknown data set 'movielens'"),
        ("data", {"options": {"num_row": 9}}, "data.options: unknown option 'num_row': did you mean 'num_rows'?"),
        ("data", {"name": "frappe", "options": {"folder": "/data"}}, "folder: /data is absolute"),
        ("model", {"name": "DNC"}, "model.name: unknown model 'DNC': did you mean 'DCN'?"),
        ("model", {"options": {"cross_layer": 1}}, "did you mean 'cross_layers'?"),
        ("model", {"linear": True}, "model.linear: DCN takes no first-order weights"),
        ("model", {"init_uniform": 0.1, "init_normal": 0.1}, "init_uniform or init_normal, not both"),
        ("experiment", "../elsewhere", "experiment"),
        ("seeds", [-1], r"seeds\[0\]"),
        ("slices", {"tail": {"feature": "item", "min_count": 5, "max_count": 2}}, "slices.tail: max_count 2 is below"),
        ("slices", {"tail": {"featur": "item"}}, "unknown key 'slices.tail.featur': did you mean 'feature'?"),
        ("colour", "red", "unknown key 'colour'"),
        ("methods", [], "methods"),
        ("methods", [{"method": "HashTrick", "rows": 5}], "unknown method 'HashTrick': did you mean 'HashingTrick'?"),
        ("methods", [{"method": "HashingTrick"}], "HashingTrick needs rows: give rows, nbytes or share"),
        ("methods", [{"method": "HashingTrick", "rows": 5, "share": 0.1}], "give one budget, not rows and share"),
        ("methods", [{"method": "Full", "rows": 5}], "Full has no rows"),
        ("methods", [{"method": "UnifiedEmbedding", "rows": 5}], "UnifiedEmbedding with rows needs chunk_dim"),
        ("methods", [{"method": "Full", "options": {"row": 5}}], "unknown option 'row'"),
        ("optimizer", {"lr": float("nan")}, "optimizer.lr: must be a finite number, not nan"),
        ("methods", [{"method": "HashingTrick", "share": [0.1, float("inf")]}], r"methods\[0\].share\[1\]: .*finite"),
        ("model", {"options": {"dropout": True}}, "model.options.dropout: input should be a valid number, not True"),
        ("data", {"options": {"drift": True}}, "data.options.drift: must be like its default 0.1, not True"),
        (
            "methods",
            [{"method": "UnifiedEmbedding", "share": 0.1, "options": {"chunk_dim": [4, 8]}}],
            r"methods\[0\].options.chunk_dim: input should be a valid integer, not \[4, 8\]; a list is swept for",
        ),
        ("training", {"batch_size": [64, 128]}, r"training.batch_size: .*not \[64, 128\]; a list is swept for budgets"),
        ("methods", [{"method": "Full", "label": "x" * 300}], "300 bytes|bytes are too long for a file name"),
        ("methods", [{"method": "Full"}, {"method": "Full"}], "two runs are called 'synthetic-Full-seed0'"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(small, section, values, message):
    small[section] = {**small[section], **values} if isinstance(small.get(section), dict) else values
    with pytest.raises(InputError, match=message) as caught:
        check(small, "small.toml")
    assert str(caught.value).startswith("small.toml: ")


def test_a_missing_key_is_named(small):
    del small["training"]["epochs"]
    with pytest.raises(InputError, match=r"missing key 'training.epochs'"):
        check(small, "small.toml")


def test_all_that_is_wrong_is_said_at_once(small):
    small["model"]["name"] = "DNC"
    small["methods"][0]["method"] = "Fall"
    with pytest.raises(InputError, match=r"(?s)model.name.*methods\[0\]"):
        check(small, "small.toml")


def test_files_folders_and_names_are_found(tmp_path, toml):
    path = toml()
    assert find([path]) == [path]
    assert find([tmp_path, path]) == [path]
    assert find([Path("unified-ml1m")]) == [CONFIGS / "unified-ml1m.toml"]
    with pytest.raises(InputError, match="did you mean 'unified-ml1m'"):
        find([Path("unified-ml1")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no \.toml file"):
        find([tmp_path / "empty"])
