"""What `--here` reads of an allocation, and what does not fit into it."""

from pathlib import Path

import pytest

from llada_sft.cluster.launch.allocation import Allocation, without_steps
from llada_sft.config import load_config
from llada_sft.errors import ConfigError, LaunchError

SHELL = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "node[1-3]",
    "SLURM_JOB_NUM_NODES": "3",
    "SLURM_JOB_CPUS_PER_NODE": "16(x2),8",
}


def test_an_allocation_is_read_from_its_shell() -> None:
    assert Allocation.of(SHELL) == Allocation("7", "node[1-3]", 3, cpus=8, gpus=None)
    with_gpus = {**SHELL, "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_CPUS_PER_NODE": ""}
    assert Allocation.of(with_gpus) == Allocation("7", "node[1-3]", 3, cpus=None, gpus=4)


@pytest.mark.parametrize("environment", [{}, {**SHELL, "SLURM_JOB_NUM_NODES": "x"}])
def test_a_shell_without_an_allocation(environment: dict[str, str]) -> None:
    with pytest.raises(LaunchError) as caught:
        Allocation.of(environment)
    assert str(caught.value) == (
        "--here: this shell is in no SLURM allocation: get one with  salloc --nodes=N  first,"
        " or launch without --here"
    )


def test_ranks_that_fit(project: Path) -> None:
    few = ["slurm.nodes=3", "slurm.ranks_per_node=1", "slurm.cpus_per_rank=8"]
    Allocation("7", "node[1-3]", 3, cpus=8, gpus=1).require(load_config("a.yaml", few))
    elastic = ["slurm.nodes=4", "slurm.elastic=[3, 4]", "train.accumulate_grad_batches=3"]
    Allocation("7", "node[1-3]", 3, None, None).require(load_config("a.yaml", elastic))


def test_each_thing_that_does_not_fit_is_a_line(project: Path) -> None:
    config = load_config("a.yaml", ["slurm.nodes=4", "slurm.cpus_per_rank=8"])
    with pytest.raises(ConfigError) as caught:
        Allocation("7", "node[1-3]", 3, cpus=8, gpus=1).require(config)
    assert str(caught.value).splitlines() == [
        "slurm.nodes: 4 nodes are needed, and allocation 7 has 3: leave --nodes away, or get more"
        " nodes",
        "slurm.cpus_per_rank: 2 ranks × 8 CPUs = 16 CPUs are needed on each node, and allocation 7"
        " has 8: get it with  salloc --ntasks-per-node=2 --cpus-per-task=8 , or set"
        " slurm.cpus_per_rank",
        "slurm.ranks_per_node: 2 ranks need a GPU each, and allocation 7 has 1 on a node: get it"
        " with  salloc --gpus-per-node=2 , or set slurm.ranks_per_node=1",
    ]


def test_no_variable_of_the_allocation_is_an_option_of_the_step() -> None:
    options = {"SLURM_NTASKS": "1", "SLURM_CPU_BIND": "quiet", "SRUN_CPUS_PER_TASK": "9"}
    assert without_steps({**SHELL, **options, "HOME": "/root"}) == {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[1-3]",
        "SLURM_JOB_NUM_NODES": "3",
        "HOME": "/root",
    }
