"""What is read of three versions of SLURM is the same, whatever else they print.

recorded/VERSION.json has what a real one printed (tests/slurm/record.py made it): 22.05.8, 24.11.5
and 26.05.5 of Debian bookworm, trixie and sid.
"""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llada_sft.cluster import job_states, slurm
from llada_sft.cluster.attempt.evidence import SrunEnd
from llada_sft.cluster.attempt.verdict import Evidence, judge
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.preflight import can_start, partitions
from llada_sft.cluster.preflight.partitions import Node
from llada_sft.cluster.rank.stopping import RankJob, cause_of
from llada_sft.cluster.watch import pending
from llada_sft.config import load_config
from tests.unit.cluster.conftest import FakeTool

FILES = sorted(Path(__file__).with_name("recorded").glob("*.json"))
Answer = dict[str, Any]
Answers = dict[str, Answer]
Replay = Callable[[Answer], None]


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def answers(request: pytest.FixtureRequest) -> Answers:
    """Return what one version printed."""
    found: Answers = json.loads(request.param.read_text(encoding="utf-8"))
    return found


@pytest.fixture
def replay(fake_tool: FakeTool, tmp_path: Path) -> Replay:
    """Have a command print what was recorded."""

    def add(answer: Answer) -> None:
        lines = {name: "\n".join([*answer[name], ""]) for name in ("stdout", "stderr")}
        for name, text in lines.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        tool = shlex.split(answer["command"])[0]
        out, errors = (shlex.quote(str(tmp_path / name)) for name in lines)
        fake_tool(tool, f"cat {out}\ncat {errors} >&2\nexit {answer['exit_code']}")

    return add


def fields_of(answers: Answers, situation: str) -> dict[str, str]:
    return slurm.parse_fields(answers[f"job: {situation}"]["stdout"][0])


def test_three_versions_were_recorded() -> None:
    assert [file.stem for file in FILES] == ["22.05.8", "24.11.5", "26.05.5"]


@pytest.mark.parametrize(
    ("situation", "states", "fields"),
    [
        ("begins later", ["PENDING"], {"Reason": "BeginTime", "NodeList": "", "Restarts": "0"}),
        ("held", ["PENDING"], {"Reason": "JobHeldUser"}),
        ("failed", ["FAILED"], {"ExitCode": "3:0", "Restarts": "0"}),
        ("depends on one that failed", ["PENDING"], {"Reason": "DependencyNeverSatisfied"}),
        ("completed", ["COMPLETED"], {"NodeList": "node[1-2]", "ExitCode": "0:0"}),
        ("array", ["PENDING"], {"ArrayTaskId": "3-9%2"}),
        ("running", ["RUNNING"], {"NodeList": "node[1-2]", "ExcNodeList": "(null)"}),
        # At once, or when the node is cleaned up.
        ("requeued", ["COMPLETING", "PENDING"], {"Restarts": "1"}),
        ("requeued and held", ["COMPLETING", "PENDING"], {"Restarts": "1"}),
        ("is being cancelled", ["COMPLETING"], {"Restarts": "0"}),
        ("cancelled", ["CANCELLED"], {"Restarts": "0"}),
        ("preempted", ["RUNNING"], {"Restarts": "0", "NodeList": "node[1-4]"}),
        ("requeued after its grace time", ["PENDING"], {"Restarts": "1"}),
        ("at its time limit", ["TIMEOUT"], {"Reason": "TimeLimit"}),
    ],
)
def test_jobs(
    answers: Answers, replay: Replay, situation: str, states: list[str], fields: dict[str, str]
) -> None:
    replay(answers[f"job: {situation}"])
    read = slurm.job_fields(fields_of(answers, situation)["JobId"])
    assert read["JobState"] in states
    assert fields.items() <= read.items()


def test_what_is_concluded_of_jobs(answers: Answers) -> None:
    """Signals are explained, and what has ended or waits for a person is known as such."""
    job = RankJob("1", 0, 60)
    for situation, cause in (
        ("running", Cause.TOLD_TO_STOP),
        ("requeued", Cause.REQUEUED),
        ("is being cancelled", Cause.CANCELLED),
        ("preempted", Cause.PREEMPTED),
        ("at its time limit", Cause.TIME_LIMIT),
    ):
        assert cause_of(["SIGTERM"], fields_of(answers, situation), job) == cause
    ended = ("failed", "completed", "cancelled", "at its time limit")
    for situation in (name.removeprefix("job: ") for name in answers if name.startswith("job: ")):
        if situation != "not known":
            state = fields_of(answers, situation)["JobState"]
            assert job_states.has_ended(state) == (situation in ended)
    held = job_states.described("1", fields_of(answers, "requeued and held"))
    assert held.endswith("scontrol release 1")
    begins = fields_of(answers, "begins later")
    assert pending.start_time(begins) == float(begins["StartTime"]) > 1e9
    assert pending.in_words(pending.reason_of(begins), "1").startswith("BeginTime: it was asked")


def test_a_job_that_is_not_known(answers: Answers, replay: Replay) -> None:
    replay(answers["job: not known"])
    assert slurm.job_fields("999999") == {}
    replay(answers["job table: not known"])
    assert slurm.job_table(["999999"]) == {}


def test_the_job_table(answers: Answers, replay: Replay) -> None:
    replay(answers["job table"])
    table = slurm.job_table(["1"])
    array = fields_of(answers, "array")["JobId"]
    states = sorted(fields["JobState"] for fields in table.values())
    assert states == [*["CANCELLED"] * 2, "COMPLETED", "FAILED", *["PENDING"] * 7]
    for situation in ("failed", "completed", "cancelled"):
        shown = fields_of(answers, situation)
        assert table[shown["JobId"]].items() <= shown.items()
    assert table[f"{array}_9"]["Reason"] == "BeginTime"


def test_nodes(answers: Answers, replay: Replay) -> None:
    listed = map(partitions.parse_node, answers["nodes: of a partition"]["stdout"])
    states = ("mixed", "allocated", "drained", "maint")
    assert list(listed) == [Node(f"node{i}", 4, 4000, 2, s) for i, s in enumerate(states, 1)]
    replay(answers["nodes: states"])
    assert slurm.usable_nodes("low") == ["node1", "node2", "node4"]
    # Each node is there for each of its partitions.
    replay(answers["nodes: of a job"])
    assert slurm.lost_nodes("node[1-2]") == ["node1"]
    replay(answers["nodes of two kinds"])
    names = ["node1", "node2", "node3", "gpu7", "a-08", "a-09", "a-10"]
    assert slurm.hostnames("node[1-3],gpu7,a-[08-10]") == names


def test_the_cluster(answers: Answers, replay: Replay) -> None:
    replay(answers["configuration"])
    assert (slurm.cluster_name(), slurm.hides_jobs()) == ("llada_sft_test", False)


@pytest.mark.usefixtures("project")
def test_partitions(answers: Answers, replay: Replay, fake_tool: FakeTool) -> None:
    replay(answers["partitions"])
    fake_tool("sinfo", "exit 1")
    config = load_config("a.yaml", ["slurm.partition='low,short,one,ours,shut'"])
    listed = {found.name: found.fields for found in partitions.list_partitions(config)}
    assert list(listed) == ["low", "short", "one", "ours", "shut"]
    assert partitions.minutes_of(listed["short"]["MaxTime"]) == 10
    assert partitions.minutes_of(listed["low"]["MaxTime"]) is None
    limits = {name: listed["one"][name] for name in ("MaxNodes", "MaxMemPerNode", "MaxCPUsPerNode")}
    assert limits == {"MaxNodes": "1", "MaxMemPerNode": "1000", "MaxCPUsPerNode": "2"}
    assert (listed["ours"]["AllowAccounts"], listed["ours"]["AllowQos"]) == ("ours", "small")
    assert (listed["shut"]["State"], listed["ours"]["TotalNodes"]) == ("INACTIVE", "2")
    (default,) = partitions.list_partitions(load_config("a.yaml"))
    assert default.name == "low"


@pytest.mark.parametrize(
    ("what", "keys"),
    [
        ("time", ["slurm.time_min"]),
        ("nodes", ["slurm.nodes"]),
        ("more nodes than there are", ["slurm.nodes"]),
        ("CPUs", ["slurm"]),
        ("memory", ["slurm"]),
        ("memory of the partition", ["slurm.mem_gb_per_node"]),
        ("GPUs", ["slurm"]),
        ("partition", ["slurm.partition"]),
        ("inactive partition", ["slurm.partition"]),
        ("account", ["slurm.account"]),
        # Newer versions look at the qos first.
        ("account of the partition", ["slurm.account", "slurm.qos"]),
        ("qos", ["slurm.qos"]),
        ("wall time of the qos", ["slurm.time_min"]),
        ("GPUs of the qos", ["slurm.qos"]),
        ("feature", ["slurm.constraint"]),
        ("reservation", ["slurm.extra.reservation"]),
        ("node name", ["slurm.extra.nodelist"]),
        # 22.05 takes a job that depends on one that it does not know.
        ("dependency", ["", "slurm.extra.dependency"]),
        ("license", ["slurm.extra.licenses"]),
        ("nothing", [""]),
    ],
)
def test_refusals(answers: Answers, what: str, keys: list[str]) -> None:
    answer = answers[f"refusal: {what}"]
    refusal = can_start.refusal_of(" ".join(" ".join(answer["stderr"]).split()))
    assert bool(refusal) == (answer["exit_code"] != 0)
    line = can_start.explain(refusal) if refusal else ""
    assert line.partition(": ")[0] in keys


@pytest.mark.parametrize(
    ("what", "cause", "error"),
    [
        ("kill", Cause.KILLED, "rank 3: ended by a signal: Killed"),
        ("segmentation", Cause.KILLED, "rank 3: ended by a signal: Segmentation fault"),
        ("exit", Cause.LOST, "rank 3: Exited with exit code 3, without a failure report"),
    ],
)
def test_one_rank_of_four_ends(answers: Answers, what: str, cause: Cause, error: str) -> None:
    end = srun_end(answers[f"ranks: {what}"])
    assert [death.rank for death in end.deaths if death.first] == [3]
    assert sorted(death.rank for death in end.deaths if death.by_term) == [0, 1, 2]
    verdict = judge(evidence_of(end))
    assert (verdict.cause, verdict.rank, verdict.node) == (cause, 3, "node2")
    assert verdict.error.startswith(error)


@pytest.mark.parametrize(
    ("what", "causes"),
    [
        ("more CPUs than the job has", [Cause.MISTAKE]),
        ("more nodes than the job has", [Cause.MISTAKE]),
        # 26.05 waits for it.
        ("more memory than the job has", [Cause.MISTAKE, Cause.LOST]),
        ("more GPUs than the job has", [Cause.MISTAKE]),
        ("an option that is not known", [Cause.MISTAKE]),
    ],
)
def test_no_rank_is_started(answers: Answers, what: str, causes: list[Cause]) -> None:
    verdict = judge(evidence_of(srun_end(answers[f"not started: {what}"])))
    assert verdict.cause in causes
    assert verdict.error.startswith("no rank was started: srun: ")


def srun_end(answer: Answer) -> SrunEnd:
    return SrunEnd.of(answer["exit_code"], "\n".join(answer["stderr"]))


def evidence_of(end: SrunEnd) -> Evidence:
    return Evidence(
        exit_code=end.exit_code,
        deaths=end.deaths,
        not_started=end.not_started,
        nodes=("node1", "node2"),
        world_size=4,
    )
