"""Why an attempt ended, from what its ranks, srun and SLURM left (as seen on 22.05.8)."""

from dataclasses import replace
from pathlib import Path

import pytest

from llada_sft.cluster.attempt.evidence import with_peers
from llada_sft.cluster.attempt.verdict import Death, Evidence, judge, read_srun, why_not_started
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.failures import Failure

KILLED = """\
srun: error: node2: task 3: Killed
srun: launch/slurm: _step_signal: Terminating StepId=2.0
srun: error: node1: tasks 0-1: Exited with exit code 143
srun: error: node2: task 2: Killed
srun: Force Terminated StepId=2.0
"""
STOPPED = """\
srun: Job step aborted: Waiting up to 7 seconds for job step to finish.
srun: got SIGCONT
srun: forcing job termination
srun: error: node1: tasks 0-1: Killed
"""
NODE_FAILURE = """\
srun: error: Node failure on node2
srun: Job step aborted: Waiting up to 7 seconds for job step to finish.
"""
# Two nodes of two ranks.
FOUR = Evidence(exit_code=137, nodes=("node1", "node2"), world_size=4)


def said(
    rank: int, error: str, *, consequence: bool = False, time: float = 0.0, step: int = 12
) -> Failure:
    node = f"node{1 + rank // 2}"
    return Failure(rank, node, Cause.EXCEPTION, error, step, "Traceback", consequence, time)


def peer(rank: int) -> Failure:
    return said(rank, "RuntimeError: Connection closed by peer", consequence=True)


def timed_out(rank: int) -> Failure:
    words = "RuntimeError: Timed out waiting 1800000ms for recv operation to complete"
    return said(rank, words, consequence=True)


def after(srun: str, *failures: Failure, stopped: Cause | None = None) -> Evidence:
    deaths, lost = read_srun(srun)
    return replace(FOUR, deaths=deaths, lost_nodes=lost, failures=failures, stopped=stopped)


def test_sruns_messages() -> None:
    assert read_srun(KILLED) == (
        [
            Death(3, "node2", "Killed", first=True),
            Death(0, "node1", "Exited with exit code 143", first=False),
            Death(1, "node1", "Exited with exit code 143", first=False),
            Death(2, "node2", "Killed", first=False),
        ],
        [],
    )
    assert read_srun(NODE_FAILURE) == ([], ["node2"])
    many = "srun: error: n[1-2]: tasks 0,2-4: Out Of Memory"
    assert [death.rank for death in read_srun(many)[0]] == [0, 2, 3, 4]


@pytest.mark.parametrize(
    ("evidence", "cause", "rank", "node", "error"),
    [
        pytest.param(
            after("", said(0, "KeyError: b", time=5), peer(1), said(3, "ValueError: a", time=4)),
            Cause.EXCEPTION, 3, "node2", "ValueError: a",
            id="the first that is no consequence",
        ),
        pytest.param(
            after(KILLED, peer(0), peer(1)),
            Cause.KILLED, 3, "node2", "rank 3: ended by a signal: Killed",
            id="a rank that srun saw die first",
        ),
        pytest.param(
            # The peers were quicker than srun's look at the dead rank.
            after(
                "srun: error: node1: task 0: Exited with exit code 1\n"
                "srun: launch/slurm: _step_signal: Terminating StepId=2.0\n"
                "srun: error: node2: task 3: Segmentation fault (core dumped)\n",
                peer(0), peer(1), peer(2),
            ),
            Cause.KILLED, 3, "node2",
            "rank 3: ended by a signal: Segmentation fault (core dumped)",
            id="a rank whose death was reported late",
        ),
        pytest.param(
            after("srun: error: node1: task 1: Out Of Memory\n", peer(0)),
            Cause.OUT_OF_MEMORY, 1, "node1", "rank 1: SLURM ended it for its memory",
            id="out of memory",
        ),
        pytest.param(
            after(NODE_FAILURE, said(0, "RuntimeError: unhandled system error")),
            Cause.NODE_FAILURE, 2, "node2", "node node2 failed",
            id="a node that srun lost, whatever the others make of it",
        ),
        pytest.param(
            after("", peer(0), peer(1)),
            Cause.NODE_FAILURE, 2, "node2", "no rank of node node2 was heard of again",
            id="a silent node",
        ),
        pytest.param(
            after("", peer(0), peer(1), peer(2)),
            Cause.LOST, None, "",
            "a rank vanished; what rank 0 saw of it: RuntimeError: Connection closed by peer",
            id="one rank is silent, not a node",
        ),
        pytest.param(
            after("", timed_out(0), timed_out(1), timed_out(2), timed_out(3)),
            Cause.HANG, None, "",
            "a collective timed out, and no rank said why; rank 0: RuntimeError: Timed out waiting"
            " 1800000ms for recv operation to complete",
            id="collectives timed out, and nobody knows why",
        ),
        pytest.param(
            after("", timed_out(0), timed_out(1), said(3, "rank 3 hangs", time=9)),
            Cause.EXCEPTION, 3, "node2", "rank 3 hangs",
            id="collectives timed out, and a rank knows why",
        ),
        pytest.param(
            after(STOPPED, stopped=Cause.PREEMPTED),
            Cause.PREEMPTED, None, "", "the ranks were ended before they had saved",
            id="SLURM killed all ranks",
        ),
        pytest.param(
            replace(after("", stopped=Cause.REQUEUED), silent_srun=True),
            Cause.NODE_FAILURE, 0, "node1", "node node1, which ran the batch script, was lost",
            id="the node of srun, and nobody could say a word",
        ),
        pytest.param(
            replace(after("", peer(2), stopped=Cause.REQUEUED), silent_srun=True),
            Cause.NODE_FAILURE, 0, "node1", "node node1, which ran the batch script, was lost",
            id="the node of srun, and one rank of the other spoke",
        ),
        pytest.param(
            after(STOPPED, stopped=Cause.REQUEUED),
            Cause.REQUEUED, None, "", "the ranks were ended before they had saved",
            id="requeued by somebody: srun was told",
        ),
        pytest.param(
            replace(after("", stopped=Cause.PREEMPTED), silent_srun=True),
            Cause.PREEMPTED, None, "", "the ranks were ended before they had saved",
            id="a rank noted why SLURM stopped the job",
        ),
        pytest.param(
            after(KILLED, stopped=Cause.CANCELLED),
            Cause.KILLED, 3, "node2", "rank 3: ended by a signal: Killed",
            id="cancelled while a rank was dying",
        ),
        pytest.param(
            after("srun: error: node2: task 2: Exited with exit code 1\n"),
            Cause.LOST, 2, "node2",
            "rank 2: Exited with exit code 1, without a failure report: see its log",
            id="an exit without a word",
        ),
        pytest.param(
            FOUR, Cause.LOST, None, "",
            "it ended without a failure report: srun's exit code is 137",
            id="nothing at all",
        ),
        pytest.param(
            replace(FOUR, exit_code=0), Cause.FINISHED, None, "", "all ranks exited with 0",
            id="well, but without a word",
        ),
    ],
)  # fmt: skip
def test_the_cause(
    evidence: Evidence, cause: Cause, rank: int | None, node: str, error: str
) -> None:
    verdict = judge(evidence)
    assert (verdict.cause, verdict.rank, verdict.node, verdict.error) == (cause, rank, node, error)


NO_STEP = "srun: error: Unable to create step for job 1: "
BUSY = "srun: Job 1 step creation temporarily disabled, retrying (Requested nodes are busy)\n"
# As seen on 24.11.5 and 26.05.5, where --immediate ends the wait.
NEVER = (
    "srun: Job step's --cpus-per-task value exceeds that of job (9 > 1). Job step may never run.\n"
)


@pytest.mark.parametrize(
    ("srun", "line", "cause"),
    [
        (f"{NEVER}{NO_STEP}Requested nodes are busy\n", 0, Cause.MISTAKE),
        (f"{NO_STEP}Requested nodes are busy\n", 0, Cause.LOST),
        ("srun: error: Only allocated 2 nodes asked for 4\n", 0, Cause.MISTAKE),
        (f"{BUSY}{NO_STEP}More processors requested than permitted\n", -1, Cause.MISTAKE),
        (
            "srun: error: Step requested gres_per_node=gpu:9 is more than the job's\n"
            f"{NO_STEP}Invalid generic resource (gres) specification\n",
            -1,
            Cause.MISTAKE,
        ),
        ("srun: fatal: SLURM_MEM_PER_CPU and SLURM_MEM_PER_NODE are mutually exclusive.", 0,
         Cause.MISTAKE),
        ("srun: unrecognized option '--x'\nTry \"srun --help\" for more information", 0,
         Cause.MISTAKE),
        (f"{BUSY}{NO_STEP}Job/step already completing or completed", -1, Cause.LOST),
        (f"{NO_STEP}Unable to contact slurm controller (connect failure)", 0, Cause.LOST),
        ("srun: error: Unable to confirm allocation for job 1: Socket timed out", 0, Cause.LOST),
        ("srun: fatal: Could not establish a configuration source", 0, Cause.LOST),
        ("/spool/slurm_script: line 36: exec: srun: not found", 0, Cause.LOST),
    ],
)  # fmt: skip
def test_sruns_own_line_is_the_cause_where_it_started_no_rank(
    srun: str, line: int, cause: Cause
) -> None:
    evidence = replace(FOUR, exit_code=1, not_started=why_not_started(srun))
    verdict = judge(evidence)
    said = srun.splitlines()[line]
    assert (verdict.cause, verdict.error) == (cause, f"no rank was started: {said}")
    # Not where SLURM stopped the job, nor where ranks were started and say more.
    assert judge(replace(evidence, stopped=Cause.CANCELLED)).cause == Cause.CANCELLED
    assert judge(replace(evidence, failures=[said_by_rank(1)])).error == "ValueError: a"


def said_by_rank(rank: int) -> Failure:
    return said(rank, "ValueError: a")


def test_srun_says_much_that_is_no_trouble() -> None:
    for warning in (BUSY, NEVER):
        text = f"{warning}srun: Step created for job 1\n{KILLED}{STOPPED}"
        assert why_not_started(text) == ""


def test_the_verdict_keeps_step_and_traceback() -> None:
    verdict = judge(after("", said(1, "ValueError: a", step=7)))
    assert (verdict.step, verdict.traceback) == (7, "Traceback")


@pytest.mark.parametrize(
    ("evidence", "suspect"),
    [
        (after("", replace(said(2, "node2: other"), cause=Cause.NODE_FAILURE, witness=0)), True),
        (after(KILLED), True),
        (after(NODE_FAILURE), True),
        (after("", Failure(2, "node2", Cause.HANG, "rank 2 hangs in data")), True),
        (after("", said(2, "RuntimeError: CUDA error: uncorrectable ECC error encountered")), True),
        (after("", said(2, "DistBackendError: NCCL error: unhandled system error")), True),
        (after("", said(2, "AcceleratorError: CUDA error: device-side assert triggered")), False),
        (after("", said(2, "OutOfMemoryError: CUDA out of memory")), False),
        (after("", said(2, "ValueError: a")), False),
        (after("srun: error: node1: task 1: Out Of Memory\n"), False),
    ],
)
def test_which_node_is_suspected(evidence: Evidence, suspect: bool) -> None:
    assert judge(evidence).suspect is suspect


def test_a_rank_that_spoke_is_not_the_one_that_was_killed() -> None:
    """srun lists a rank first that left because of its peer; the one without a word is blamed."""
    srun = "srun: error: node1: task 1: Terminated\nsrun: error: node2: task 3: Killed\n"
    verdict = judge(after(srun, peer(1), peer(0), peer(2)))
    assert (verdict.cause, verdict.rank, verdict.node) == (Cause.KILLED, 3, "node2")


def test_of_two_silent_nodes_none_is_blamed() -> None:
    three = replace(FOUR, nodes=("node1", "node2", "node3"), world_size=3)
    one = judge(replace(three, failures=(peer(0), peer(1))))
    assert (one.cause, one.rank, one.node) == (Cause.NODE_FAILURE, 2, "node3")
    two = judge(replace(three, failures=(peer(0),)))
    assert (two.cause, two.rank, two.node) == (Cause.LOST, None, "")


@pytest.mark.parametrize("srun", [KILLED, NODE_FAILURE, ""])
def test_the_step_is_that_of_the_rank_that_was_furthest(srun: str) -> None:
    """A rank that has made a step less has not yet left the collective of the last one."""
    failures = [replace(peer(rank), step=step) for rank, step in ((0, 12), (1, 13), (2, 12))]
    assert judge(after(srun, *failures)).step == 13


# SLURM 26.05 sends CONT and TERM to the siblings of a task that fails, and KILL after KillWait, by
# itself. By its sources srun may report their ends before or after that of the task, and without
# its own line in between; what was seen is in ../recorded.
TERMINATED = "srun: error: node1: tasks 0-1: Terminated\n"
FOLLOWED = "srun: error: node1: tasks 0-1: Exited with exit code 143\n"
FAILED = "srun: error: node2: task 3: {}\n"
KILLWAIT = "srun: error: node2: task 2: Killed\n"


@pytest.mark.parametrize("siblings", [TERMINATED, FOLLOWED])
@pytest.mark.parametrize("late", [False, True], ids=["in order", "siblings first"])
@pytest.mark.parametrize(
    ("how", "cause", "error"),
    [
        ("Killed", Cause.KILLED, "rank 3: ended by a signal: Killed"),
        ("Segmentation fault", Cause.KILLED, "rank 3: ended by a signal: Segmentation fault"),
        ("Out Of Memory", Cause.OUT_OF_MEMORY, "rank 3: SLURM ended it for its memory"),
        (
            "Exited with exit code 3",
            Cause.LOST,
            "rank 3: Exited with exit code 3, without a failure report: see its log",
        ),
    ],
)
def test_siblings_that_slurm_tells_to_leave_are_not_the_cause(
    siblings: str, late: bool, how: str, cause: Cause, error: str
) -> None:
    failed = FAILED.format(how)
    srun = (siblings + failed if late else failed + siblings) + KILLWAIT
    for text in (srun, srun.replace(KILLWAIT, "")):
        verdict = judge(after(text))
        assert (verdict.cause, verdict.rank, verdict.error) == (cause, 3, error)
        # Where it has said why itself, that is it.
        reported = judge(after(text, said(3, "ValueError: a"), peer(0), peer(1)))
        assert (reported.cause, reported.rank) == (Cause.EXCEPTION, 3)


# As ProcessGroupNCCL.cpp writes them.
TIMED_OUT = (
    "[rank1]:[E1126 01:02:03.4 ProcessGroupNCCL.cpp:683] [Rank 1] Watchdog caught collective"
    " operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE, Timeout(ms)=2820000) ran for 2820010"
    " milliseconds before timing out."
)
GONE = (
    "  what():  NCCL error: remote process exited or there was a network error, NCCL version 2.27"
)


@pytest.mark.parametrize(
    ("log", "cause", "error"),
    [
        (
            TIMED_OUT,
            Cause.HANG,
            f"a collective timed out, and no rank said why; rank 0: {TIMED_OUT}",
        ),
        (GONE, Cause.LOST, f"a rank vanished; what rank 0 saw of it: {GONE.strip()}"),
        ("free(): invalid pointer", Cause.KILLED, "rank 0: ended by a signal: Aborted"),
    ],
)
def test_what_nccl_aborts_is_a_consequence(
    tmp_path: Path, log: str, cause: Cause, error: str
) -> None:
    """Its watchdog ends the process by SIGABRT: no exception comes, and no report."""
    for rank in range(4):
        (tmp_path / f"{rank}").write_text(f"step 7\n{log}\nFatal Python error: Aborted\n")
    deaths, _ = read_srun(
        "srun: error: node1: tasks 0-1: Aborted\n"
        "srun: error: node2: task 2: Aborted (core dumped)\n"
    )
    found = with_peers(deaths, lambda rank: tmp_path / f"{rank}")
    verdict = judge(replace(FOUR, deaths=found))
    assert (verdict.cause, verdict.error) == (cause, error)
    killed = Death(3, "node2", "Killed", first=False)
    of_rank_3 = judge(replace(FOUR, deaths=[*found, killed]))
    assert of_rank_3.rank == (0 if cause == Cause.KILLED else 3)
    spoke = judge(replace(FOUR, deaths=found, failures=[said(3, "rank 3 hangs")]))
    assert (spoke.rank, spoke.error) == (3, "rank 3 hangs")


def test_an_aborted_rank_without_a_log(tmp_path: Path) -> None:
    death = Death(0, "", "Aborted", first=True)
    assert with_peers([death], lambda rank: tmp_path / "none") == [death]


def test_one_rank_that_somebody_terminated() -> None:
    verdict = judge(after(FAILED.format("Terminated"), peer(0), peer(1), peer(2)))
    assert (verdict.cause, verdict.rank) == (Cause.KILLED, 3)
