"""How SLURM writes limits and resources; the questions themselves are asked in tests/slurm."""

from pathlib import Path

import pytest

from llada_sft.cluster.preflight import can_start, partitions
from llada_sft.config import load_config, resolve_paths
from llada_sft.errors import ConfigError
from llada_sft.run_dir import RunDir
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


REFUSES = "echo 'allocation failure: Requested node configuration is not available' >&2; exit 1"
NEVER = (
    "slurm: sbatch --test-only: Requested node configuration is not available: the job would not"
    " start; compare it with  scontrol show partition  and  sinfo -N -l"
)


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ("idle mixed", None),
        ("drained idle", "1 of 2 nodes of partition x are out of service (1 drained)"),
        ("down* maint", "2 of 2 nodes of partition x are out of service (1 down*, 1 maint)"),
    ],
)
def test_nodes_that_are_out_of_service_make_a_refusal_a_warning(
    fake_tool: FakeTool, project: Path, states: str, said: str | None
) -> None:
    """`sbatch --test-only` only looks at the others."""
    nodes = "; ".join(f"echo 'n{state}|64|100000|{state}|gpu:8'" for state in states.split())
    fake_tool("scontrol", "echo PartitionName=x Default=YES State=UP")
    fake_tool("sinfo", nodes)
    fake_tool("sbatch", REFUSES)
    config = resolve_paths(load_config("a.yaml"), project)
    run = RunDir(project / "runs/a")
    if said is not None:
        line = f"warning          slurm.partition: {said}: the job waits for them"
        assert can_start.require(config, run) == [line]
        # Nothing that a node could change.
        fake_tool("sbatch", "echo 'allocation failure: Invalid qos specification' >&2; exit 1")
    with pytest.raises(ConfigError) as error:
        can_start.require(config, run)
    wrong = "slurm.qos: sbatch --test-only: Invalid qos specification; correct it"
    assert str(error.value) == (NEVER if said is None else wrong)
