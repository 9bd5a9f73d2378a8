"""Every shipped config loads."""

from pathlib import Path

import pytest

from llada_sft.config import load_config
from llada_sft.config.schema import Config

FILES = sorted((Path(__file__).parents[3] / "config").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_it_loads(file: Path) -> None:
    assert load_config(file).run.name


def shipped(name: str, *overrides: str) -> Config:
    return load_config(FILES[[file.name for file in FILES].index(name)], list(overrides))


def test_paper_has_the_batch_and_the_estimator_of_the_paper() -> None:
    paper = shipped("paper.yaml")
    assert (paper.global_batch_size, paper.global_batch_unit) == (256, "examples")
    two_nodes = shipped("paper.yaml", "slurm.nodes=2", "train.accumulate_grad_batches=8")
    assert two_nodes.global_batch_size == 256
    assert (paper.objective.masking, paper.objective.t_sampling) == ("bernoulli", "independent")
    assert paper.data.end == "batch_max"


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("slurm.nodes=2", "data.max_tokens=12288"),
        ("slurm.nodes=1", "data.max_tokens=12288", "train.accumulate_grad_batches=2"),
    ],
)
def test_zero3_has_the_batch_of_the_paper_in_tokens(overrides: tuple[str, ...]) -> None:
    """As its head says: 256 chat rows, of 764 tokens on average."""
    config = shipped("zero3.yaml", *overrides)
    assert config.global_batch_unit == "tokens"
    assert config.global_batch_size == 196_608
    assert config.global_batch_size == pytest.approx(256 * 764, rel=0.01)


def test_zero3_and_paper_differ_in_batches_and_objective_alone() -> None:
    """What trains the network otherwise is the same."""
    packed, paper = shipped("zero3.yaml"), shipped("paper.yaml")
    assert packed.optim == paper.optim
    assert packed.slurm == paper.slurm
    assert packed.train.epochs == paper.train.epochs
    assert packed.data.max_length == paper.data.max_length
