"""What stands around the ranks: the journal it writes, and what it asks of SLURM."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llada_sft.cluster import failures, journal, slurm
from llada_sft.cluster.attempt import supervisor
from llada_sft.cluster.attempt.evidence import BatchJob
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.failures import Failure
from llada_sft.cluster.journal import Entry
from llada_sft.cluster.launch import prepare
from llada_sft.config import load_config
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir

FakeTool = Callable[[str, str], None]
JOB = BatchJob("42", 0, "node[1-2]", 4)
KILLED = "srun: error: node2: task 3: Killed\n"
# The excluded nodes are kept in a file; the rest is said by the test.
SCONTROL = """
echo "$@" >> {folder}/calls
case "$*" in
  "show hostnames "*) echo "$3" | sed 's/node\\[1-2\\]/node1,node2/' | tr , '\\n';;
  "--oneliner show job "*) echo "JobId=42 {fields} ExcNodeList=$(cat {folder}/excluded)";;
  "update JobId=42 ExcNodeList="*) echo "$3" | cut -d= -f2 > {folder}/excluded;;
  "requeue 42") {requeue};;
  *) exit 1;;
esac
"""
SINFO = """
case "$*" in
  *--partition=low*) printf '%s\\n' "node1 mixed" "node2 mixed" "node3 idle" "node4 {node4}";;
  *--nodes=*) printf '%s\\n' "node1 mixed" "node2 {node2}";;
esac
"""


@pytest.fixture
def run(project: Path) -> RunDir:
    found, _ = prepare.create(load_config("a.yaml", ["slurm.nodes=2"]), project, ["launch.py"])
    return found


class FakeSlurm:
    """Stands in for scontrol and sinfo, and knows what was asked of scontrol."""

    def __init__(self, folder: Path, fake_tool: FakeTool) -> None:
        self._folder, self._fake_tool = folder, fake_tool
        self.excluded = folder / "excluded"
        self.excluded.write_text("(null)\n")
        self.says()

    def says(
        self,
        fields: str = "JobState=RUNNING",
        requeue: str = "true",
        node2: str = "mixed",
        node4: str = "idle",
    ) -> None:
        fields += " Partition=low"
        script = SCONTROL.format(folder=self._folder, fields=fields, requeue=requeue)
        self._fake_tool("scontrol", script)
        self._fake_tool("sinfo", SINFO.format(node2=node2, node4=node4))

    @property
    def requeues(self) -> int:
        calls = self._folder / "calls"
        return calls.read_text().splitlines().count("requeue 42") if calls.exists() else 0


@pytest.fixture
def calls(tmp_path: Path, fake_tool: FakeTool, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    monkeypatch.setattr(slurm, "EXCLUDE_PAUSE_S", 0)
    return FakeSlurm(tmp_path, fake_tool)


def events(run: RunDir) -> list[str]:
    return [entry["event"] for entry in journal.read(run.journal)]


def last(run: RunDir, event: str) -> Entry:
    return [entry for entry in journal.read(run.journal) if entry["event"] == event][-1]


def raised(rank: int = 3, error: str = "ValueError: a", step: int = 12) -> Failure:
    return Failure(rank, "node2", Cause.EXCEPTION, error, step, "Traceback (…)", time=1.0)


def test_an_attempt_is_noted_and_forgets_the_failures_before(run: RunDir) -> None:
    failures.write(run, raised())
    assert supervisor.begin(run, JOB, 4) == 0
    assert failures.read_all(run) == []
    (started,) = journal.read(run.journal)
    del started["time"]
    assert started == {
        "event": "started", "attempt": 1, "job_id": "42", "nodes": "node[1-2]", "restarts": 0,
        "world_size": 4,
    }  # fmt: skip


def test_what_rank_0_has_said_stands(run: RunDir, calls: FakeSlurm) -> None:
    supervisor.begin(run, JOB, 4)
    journal.append(run.journal, {"event": "ended", "attempt": 1, "cause": "preempted"})
    assert supervisor.end(run, JOB, 5) == 5
    assert events(run) == ["started", "ended"]
    assert calls.requeues == 0


def test_a_job_that_rank_0_gave_up_leaves_its_run(run: RunDir, calls: FakeSlurm) -> None:
    supervisor.begin(run, JOB, 4)
    for entry in (
        journal.Entry(event="ended", attempt=1, job_id="42", cause="time limit"),
        journal.Entry(event="given_up", attempt=1, job_id="42", detail="no progress"),
    ):
        journal.append(run.journal, entry)
    assert supervisor._end(run, JOB, 70) == (70, True)
    assert calls.requeues == 0


def test_an_exception_is_told_once_and_the_job_requeued_once(
    run: RunDir, calls: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor.begin(run, JOB, 4)
    failures.write(run, raised())
    run.srun_log("42", 0).write_text("srun: error: node2: task 3: Exited with exit code 1\n")
    assert supervisor.end(run, JOB, 1) == 1
    assert events(run) == ["started", "failed", "ended"]
    failed = last(run, "failed")
    assert (failed["rank"], failed["node"], failed["step"]) == (3, "node2", 12)
    assert run.journal.read_text().count("Traceback") == 1
    assert (last(run, "ended")["cause"], last(run, "ended")["exit_code"]) == ("exception", 1)
    assert calls.requeues == 1
    assert capsys.readouterr().out == (
        "srun: error: node2: task 3: Exited with exit code 1\n"
        "the attempt ended: exception: ValueError: a\n"
    )


def test_the_same_exception_twice_gives_up(run: RunDir, calls: FakeSlurm) -> None:
    for code in (1, 70):
        supervisor.begin(run, JOB, 4)
        failures.write(run, raised())
        assert supervisor.end(run, JOB, 1) == code
    assert calls.requeues == 1
    assert last(run, "given_up")["detail"].startswith("the same exception at step 12")
    # Whoever requeues it by hand is told how to go on; a new job is a new budget.
    assert supervisor.begin(run, JOB, 4) == 70
    assert supervisor.begin(run, BatchJob("43", 0, "node[1-2]", 4), 4) == 0


def test_a_mistake_is_not_restarted(run: RunDir, calls: FakeSlurm) -> None:
    supervisor.begin(run, JOB, 4)
    failures.write(run, Failure(0, "node1", Cause.MISTAKE, "a.yaml:1: mend this"))
    assert supervisor.end(run, JOB, 143) == 2
    assert (calls.requeues, last(run, "failed")["error"]) == (0, "a.yaml:1: mend this")


def test_the_node_of_a_killed_rank_is_left_out_besides_the_configs_own(
    run: RunDir, calls: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    calls.excluded.write_text("node9\n")
    supervisor.begin(run, JOB, 4)
    run.srun_log("42", 0).write_text(KILLED)
    assert supervisor.end(run, JOB, 137) == 1
    assert events(run) == ["started", "failed", "ended", "excluded"]
    assert calls.excluded.read_text() == "node9,node2\n"
    assert last(run, "excluded")["node"] == "node2"
    line = "node node2 is excluded from the next attempts: rank 3: ended by a signal: Killed\n"
    assert capsys.readouterr().out.endswith(line)


def test_never_fewer_nodes_than_needed(run: RunDir, calls: FakeSlurm) -> None:
    calls.excluded.write_text("node3\n")
    calls.says(node4="drained*")
    supervisor.begin(run, JOB, 4)
    run.srun_log("42", 0).write_text(KILLED)
    assert supervisor.end(run, JOB, 137) == 1
    assert (calls.requeues, calls.excluded.read_text()) == (1, "node3\n")
    assert last(run, "warning")["detail"] == (
        "node node2 may be broken and is not excluded: the job needs 2 nodes, and without it"
        " partition low has 1 in service"
    )


def test_a_node_is_left_out_where_just_enough_others_are_left(
    run: RunDir, calls: FakeSlurm
) -> None:
    calls.excluded.write_text("node3\n")
    supervisor.begin(run, JOB, 4)
    run.srun_log("42", 0).write_text(KILLED)
    assert supervisor.end(run, JOB, 137) == 1
    assert calls.excluded.read_text() == "node3,node2\n"


def test_an_exclusion_that_slurm_does_not_keep(run: RunDir, calls: FakeSlurm) -> None:
    calls.excluded.unlink()
    calls.excluded.mkdir()
    with pytest.raises(LaunchError):
        slurm.exclude("42", "node2")


@pytest.mark.parametrize(
    ("fields", "cause", "requeues"),
    [
        # SLURM had lost a node, or somebody requeued it: it is in the queue already.
        ("JobState=COMPLETING Restarts=1", "requeued", 0),
        # The save did not fit into the lead; a requeue works until the script is killed.
        ("JobState=COMPLETING Restarts=0 Reason=TimeLimit", "time limit", 1),
        ("JobState=COMPLETING Restarts=0 Reason=None", "cancelled", 0),
        ("JobState=RUNNING Restarts=0 Reason=None", "lost", 1),
    ],
)
def test_what_slurm_did_to_the_job(
    run: RunDir, calls: FakeSlurm, fields: str, cause: str, requeues: int
) -> None:
    calls.says(fields)
    supervisor.begin(run, JOB, 4)
    supervisor.end(run, JOB, 137)
    assert (last(run, "ended")["cause"], calls.requeues) == (cause, requeues)


def test_a_cancelled_job_is_not_requeued_for_a_rank_that_died(
    run: RunDir, calls: FakeSlurm
) -> None:
    calls.says("JobState=COMPLETING Restarts=0 Reason=None")
    supervisor.begin(run, JOB, 4)
    run.srun_log("42", 0).write_text(KILLED)
    supervisor.end(run, JOB, 137)
    assert (last(run, "ended")["cause"], calls.requeues) == ("killed", 0)
    assert "cancelled while" in last(run, "warning")["detail"]


def test_a_requeue_that_fails_is_said(run: RunDir, calls: FakeSlurm) -> None:
    calls.says(requeue="echo Access denied >&2; exit 1")
    supervisor.begin(run, JOB, 4)
    failures.write(run, raised())
    assert supervisor.end(run, JOB, 1) == 1
    assert last(run, "warning")["detail"] == (
        "not restarted: scontrol requeue 42: Access denied; to resume: "
        f" llada-sft resume {run.path}"
    )


@pytest.mark.parametrize(
    ("signal_cause", "node2", "srun", "cause", "node"),
    [
        (None, "mixed", "srun: forcing job termination\n", "requeued", None),
        (None, "mixed", "", "node failure", "node1"),
        # The node was lost before srun wrote its first line, or was started.
        (None, "mixed", None, "node failure", "node1"),
        ("preempted", "mixed", None, "preempted", None),
        ("preempted", "mixed", "", "preempted", None),
        (None, "down*", "", "node failure", "node2"),
        (None, "mixed", "srun: error: Node failure on node2\n", "node failure", "node2"),
        (None, "mixed", KILLED, "killed", "node2"),
    ],
)
def test_an_attempt_whose_batch_script_was_killed_is_judged_by_the_next(
    run: RunDir,
    calls: FakeSlurm,
    signal_cause: str | None,
    node2: str,
    srun: str | None,
    cause: str,
    node: str | None,
) -> None:
    calls.says(node2=node2)
    supervisor.begin(run, JOB, 4)
    if signal_cause:
        journal.append(run.journal, {"event": "signal", "attempt": 1, "cause": signal_cause})
    if srun is not None:
        run.srun_log("42", 0).write_text(srun)
    assert supervisor.begin(run, BatchJob("42", 1, "node[1,3]", 4), 4) == 0
    ended = last(run, "ended")
    assert (ended["attempt"], ended["cause"]) == (1, cause)
    assert [e.get("node") for e in journal.read(run.journal) if e["event"] == "failed"] == (
        [node] if node else []
    )
    assert last(run, "started")["attempt"] == 2
    assert calls.requeues == 0


@pytest.mark.parametrize(
    ("state", "cause"), [("CANCELLED", "cancelled"), ("TIMEOUT", "time limit"), ("FAILED", "lost")]
)
def test_an_attempt_of_an_earlier_job(
    run: RunDir, calls: FakeSlurm, state: str, cause: str
) -> None:
    calls.says(f"JobState={state}")
    supervisor.begin(run, JOB, 4)
    supervisor.begin(run, BatchJob("43", 0, "node[1-2]", 4), 4)
    assert (last(run, "ended")["attempt"], last(run, "ended")["cause"]) == (1, cause)


def test_too_many_lost_nodes_end_the_job_at_its_next_start(run: RunDir, calls: FakeSlurm) -> None:
    """SLURM itself restarts a job that lost a node, whatever our budget is."""
    config = load_config(run.config, ["slurm.node_failure_restarts=0"])
    prepare.replace_config(run, config)
    calls.says(node2="down*")
    supervisor.begin(run, JOB, 4)
    assert supervisor.begin(run, BatchJob("42", 1, "node[1,3]", 4), 4) == 70
    assert events(run) == ["started", "failed", "ended", "given_up"]


def test_outside_of_slurm(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(LaunchError) as caught:
        BatchJob.of(os.environ)
    assert str(caught.value) == "SLURM_JOB_ID is not set: this belongs into a SLURM job"


def test_it_is_light() -> None:
    """It runs before and after every attempt: without torch, and mostly without the config."""
    script = """
import sys
from llada_sft.cluster.attempt import supervisor
print(sorted({"torch", "numpy", "lightning", "pydantic", "submitit"} & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
