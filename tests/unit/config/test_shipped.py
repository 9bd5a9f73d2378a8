"""Every shipped config loads."""

from pathlib import Path

import pytest

from llada_sft.config import load_config

FILES = sorted((Path(__file__).parents[3] / "config").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_it_loads(file: Path) -> None:
    assert load_config(file).run.name


def test_zero3_has_the_batch_of_the_paper() -> None:
    file = next(file for file in FILES if file.name == "zero3.yaml")
    assert load_config(file).global_batch_size == 256
    on_two_nodes = ["slurm.nodes=2", "train.accumulate_grad_batches=8"]
    assert load_config(file, on_two_nodes).global_batch_size == 256
