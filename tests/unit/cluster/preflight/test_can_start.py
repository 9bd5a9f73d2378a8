"""How SLURM writes limits and resources; the questions themselves are asked in tests/slurm."""

import pytest

from llada_sft.cluster.preflight import can_start, partitions
from llada_sft.config import load_config
from tests.unit.cluster.conftest import FakeTool


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [
        ("UNLIMITED", None),
        ("", None),
        ("00:10:00", 10),
        ("00:10:30", 11),
        ("1-00:00:00", 1440),
        ("2-03:04:00", 3064),
    ],
)
def test_time_limits(limit: str, minutes: int | None) -> None:
    assert partitions.minutes_of(limit) == minutes


@pytest.mark.parametrize(
    ("gres", "number"),
    [
        ("(null)", 0),
        ("gpu:2", 2),
        ("gpu", 1),
        ("gpu:a100:8(S:0-1)", 8),
        ("nvme:1,gpu:h100:4(S:0-3)", 4),
        ("gpu:a100:2,gpu:v100:4", 6),
        ("gpu:nvidia_h100_80gb_hbm3:8(S:0-1),shard:16", 8),
        ("mygpu:3", 0),
    ],
)
def test_gpus_of_a_node(gres: str, number: int) -> None:
    assert partitions.count_gpus(gres) == number


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("answer", ["exit 1", "echo nonsense", "echo 'PartitionName=x State=UP'"])
def test_a_cluster_that_answers_otherwise_stops_nothing(fake_tool: FakeTool, answer: str) -> None:
    for tool in ("scontrol", "sinfo"):
        fake_tool(tool, answer)
    config = load_config("a.yaml", ["slurm.partition=x", "slurm.extra={dependency: singleton}"])
    assert partitions.problems_of(config, partitions.list_partitions(config)) == []
    assert list(can_start._of_dependency(config)) == []
