"""The program of docs/tutorials/sharded-training.md runs on two processes."""

import re

from tests.programs import program, torchrun


def test_the_program_runs_on_two_processes(tmp_path):
    (tmp_path / "train.py").write_text(program("tutorials/sharded-training.md", "init_process_group("))
    for rank, said in enumerate(torchrun(tmp_path / "train.py")):
        assert f"process {rank} of 2: 32 rows in the last batch" in said
        assert re.search(r"'user': '(table|row)_wise'", said)
        assert re.search(r"'shared': '(table|row)_wise'", said)
