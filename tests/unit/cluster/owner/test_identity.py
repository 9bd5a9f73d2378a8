"""Who an owner is and when it is dead: the decision as a table, and the line that names it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llada_sft.cluster.owner import identity
from llada_sft.cluster.owner.identity import Owner, describe_owner, refusal
from llada_sft.cluster.owner.liveness import Seen, is_dead, is_visible, job_is_over

HERE: dict[str, Any] = {"host": "h", "machine": "m", "boot_id": "b", "pid_namespace": "p"}
ME = Owner("me", "process", pid=9, start_time="9", **HERE)
MY_JOB = Owner("me", "job", job_id="42", restarts=1, **HERE)


def process(**changes: Any) -> Owner:
    return Owner(**{"token": "it", "kind": "process", "pid": 7, "start_time": "7"} | HERE | changes)


def job(**changes: Any) -> Owner:
    return Owner(**{"token": "it", "kind": "job", "job_id": "7"} | changes)


GONE, ALIVE = Seen(process="gone"), Seen(process="alive", silent_s=1e6)
LONG, SHORT = Seen(silent_s=180.5), Seen(silent_s=179.5)
OVER = Seen(job="over")


@pytest.mark.parametrize(
    ("it", "claimant", "seen", "dead"),
    [
        # Nobody, and a copy of the run directory.
        (Owner("it", "nobody"), ME, Seen(), True),
        (process(), ME, replace(ALIVE, copied=True), True),
        (job(), ME, Seen(copied=True), True),
        # A process of this host, boot and pid namespace: its sign of life does not matter.
        (process(), ME, GONE, True),
        (process(), ME, ALIVE, False),
        # Whom one cannot see is dead after its timeout alone.
        (process(host="other", boot_id="c"), ME, SHORT, False),
        (process(host="other", boot_id="c"), ME, LONG, True),
        (process(pid_namespace="q"), ME, SHORT, False),
        (process(pid_namespace="q"), ME, LONG, True),
        (process(host="other", boot_id="c", timeout_s=600), ME, LONG, False),
        # A clock that was set back, or a file that is dated in the future.
        (process(host="other", boot_id="c"), ME, Seen(silent_s=-7200.0), False),
        # The same host after a boot, but not another host of the same name.
        (process(boot_id="c"), ME, SHORT, True),
        (process(boot_id="c", machine=""), replace(ME, machine=""), SHORT, False),
        (process(boot_id="c", machine="n"), ME, SHORT, False),
        (process(boot_id=""), ME, SHORT, False),
        # A job is dead only if SLURM says so.
        (job(), ME, Seen(silent_s=1e6), False),
        (job(), ME, OVER, True),
        # A process within a job that is over, and one whose job was restarted.
        (process(job_id="7", host="other", boot_id="c"), ME, OVER, True),
        (process(job_id="42", host="other", boot_id="c"), MY_JOB, SHORT, True),
        # This very job, restarted; an earlier start of it that comes back is refused.
        (job(job_id="42", restarts=0), MY_JOB, Seen(), True),
        (job(job_id="42", restarts=2), MY_JOB, Seen(), False),
        (job(job_id="42", restarts=0, cluster="a"), MY_JOB, Seen(), True),
        # A process within this start of this very job: two of them are two writers.
        (process(job_id="42", restarts=1), MY_JOB, ALIVE, False),
        (process(job_id="42", restarts=1, pid_namespace="q"), MY_JOB, SHORT, False),
        (job(job_id="42", restarts=1), MY_JOB, Seen(), False),
        (
            job(job_id="42", restarts=0, cluster="a"),
            replace(MY_JOB, cluster="b"),
            Seen(),
            False,
        ),
    ],
)
def test_who_is_dead(it: Owner, claimant: Owner, seen: Seen, dead: bool) -> None:
    assert is_dead(it, claimant, seen) is dead


@pytest.mark.parametrize(
    ("changes", "visible"),
    [
        ({}, True),
        # Its pid is another process's in a container, after a boot, and on another host.
        ({"pid_namespace": "q"}, False),
        ({"boot_id": "c"}, False),
        ({"boot_id": ""}, False),
        # One kernel is one host, whatever it is called.
        ({"host": "alias"}, True),
    ],
)
def test_whose_process_can_be_seen(changes: dict[str, str], visible: bool) -> None:
    assert is_visible(process(**changes), ME) is visible


@pytest.mark.parametrize(
    ("changes", "same_job", "same_attempt"),
    [
        ({"restarts": 1}, True, True),
        ({"restarts": 0}, True, False),
        ({"restarts": 1, "job_id": "43"}, False, False),
        ({"restarts": 1, "job_id": ""}, False, False),
        ({"restarts": 1, "kind": "process"}, True, False),
    ],
)
def test_one_start_of_one_job(changes: dict[str, Any], same_job: bool, same_attempt: bool) -> None:
    it = job(**{"job_id": "42"} | changes)
    assert (it.is_same_job(MY_JOB), it.is_same_attempt(MY_JOB)) == (same_job, same_attempt)
    assert (MY_JOB.is_same_job(it), MY_JOB.is_same_attempt(it)) == (same_job, same_attempt)


@pytest.mark.parametrize(("job_id", "same"), [("42", False), ("67108906", True), ("42_7", False)])
def test_a_job_of_a_federation_may_start_on_another_cluster(job_id: str, same: bool) -> None:
    """67108906 is job 42 of the federation's first cluster."""
    assert job(job_id=job_id, cluster="a").is_same_job(job(job_id=job_id, cluster="b")) is same


@pytest.mark.parametrize(
    ("fields", "restarts", "over"),
    [
        ({}, -1, True),
        ({"JobState": "COMPLETED"}, -1, True),
        ({"JobState": "NODE_FAIL"}, -1, True),
        ({"JobState": "PENDING", "Restarts": "3"}, -1, False),
        ({"JobState": "COMPLETING"}, -1, False),
        ({"JobState": "REQUEUE_HOLD"}, -1, False),
        ({"JobState": "SUSPENDED"}, -1, False),
        ({"JobState": "RUNNING", "Restarts": "1"}, 0, True),
        ({"JobState": "RUNNING", "Restarts": "1"}, 1, False),
        ({"JobState": "RUNNING"}, 0, False),
    ],
)
def test_when_a_job_is_over(fields: dict[str, str], restarts: int, over: bool) -> None:
    assert job_is_over(fields, restarts) is over


RUNNING = {"JobState": "RUNNING", "NodeList": "node[1-2]", "StartTime": "0"}
PENDING = {"JobState": "PENDING", "NodeList": "(null)", "StartTime": "99"}


@pytest.mark.parametrize(
    ("it", "fields", "silent_s", "line"),
    [
        (
            job(job_id="1", since="S"),
            RUNNING,
            0.0,
            "is trained by job 1, RUNNING on node[1-2] since 1970-01-01 00:00:00 UTC:"
            " wait for it, or stop it with  scancel 1",
        ),
        (
            job(job_id="1", since="S"),
            PENDING,
            0.0,
            "is trained by job 1, PENDING since S: wait for it, or stop it with  scancel 1",
        ),
        (
            job(job_id="1", since="S"),
            {},
            0.0,
            "is trained by job 1, since S: wait for it, or stop it with  scancel 1",
        ),
        (
            process(since="S"),
            {},
            0.0,
            "is trained by process 7 on host h since S:"
            " wait for it, or stop it there with  kill -INT 7",
        ),
        (
            process(since="S", doing="launching"),
            {},
            150.0,
            "is being launched by process 7 on host h since S:"
            " it has given no sign for 150 s; try again in 30 s",
        ),
    ],
)
def test_the_line_that_the_loser_gets(
    it: Owner, fields: dict[str, str], silent_s: float, line: str
) -> None:
    assert refusal(Path("/runs/a"), it, fields, silent_s) == f"run /runs/a {line}"


def test_nobody_is_called_nobody() -> None:
    assert describe_owner(identity.nobody(ME), {}) == "nobody"


def test_an_owner_survives_json() -> None:
    me = identity.this_process("launching", 60)
    assert Owner.from_json(json.loads(json.dumps({**me.to_json(), "new": [1]}))) == me
    assert (me.pid, me.doing, me.timeout_s) == (os.getpid(), "launching", 60)
    assert me.boot_id
    assert me.pid_namespace


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {},
        {"kind": "job"},
        {"token": "a", "kind": "king"},
        {"token": 1, "kind": "job"},
        {"token": "a", "kind": "job", "restarts": "1"},
        {"token": "a", "kind": "job", "pid": True},
        {"token": "a", "kind": "job", "job_id": "7; rm -rf ."},
    ],
)
def test_what_is_not_an_owner(content: object) -> None:
    with pytest.raises(ValueError, match=r"not an owner|must be of type"):
        Owner.from_json(content)


def test_a_job_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"SLURM_JOB_ID": "5", "SLURM_RESTART_COUNT": "3", "SLURM_CLUSTER_NAME": "c"}
    it = identity.this_job(environment)
    assert (it.kind, it.job_id, it.restarts, it.cluster) == ("job", "5", 3, "c")
    assert identity.this_job({"SLURM_JOB_ID": "5", "SLURM_RESTART_COUNT": ""}).restarts == 0


def test_a_process_is_known_by_its_start() -> None:
    sleeping = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = identity.process_start(sleeping.pid)
    assert start
    assert int(start) >= int(identity.process_start(os.getpid()) or 0)
    assert identity.process_start(sleeping.pid) == start
    sleeping.kill()
    os.waitid(os.P_PID, sleeping.pid, os.WEXITED | os.WNOWAIT)
    # A zombie: the pid is there still, and the process is over.
    assert Path(f"/proc/{sleeping.pid}").exists()
    assert identity.process_start(sleeping.pid) is None
    sleeping.communicate()
    assert identity.process_start(sleeping.pid) is None


def test_a_name_with_parentheses_is_no_riddle(tmp_path: Path) -> None:
    tool = tmp_path / "a) R 1 (b"
    tool.symlink_to("/bin/sleep")
    sleeping = subprocess.Popen([tool, "60"])
    try:
        start = identity.process_start(sleeping.pid)
        assert start is not None
        assert int(start) > 1
    finally:
        sleeping.kill()
        sleeping.wait()
