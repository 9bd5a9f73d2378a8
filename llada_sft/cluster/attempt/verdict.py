"""Why did an attempt end? A pure function of what its ranks, srun and SLURM have left.

In this order: a node that SLURM lost; the first rank that said what happened to it; a rank that
died without a failure report, which srun reports; what SLURM itself did to the job; nothing is
known. What a rank says of a peer that vanished (`Failure.consequence`) is never the cause.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llada_sft.cluster.causes import Cause
from llada_sft.cluster.failures import Failure
from llada_sft.cluster.peers import is_time_out

# "srun: error: node2: tasks 2-3: Killed"
_DEATH = re.compile(r"^srun: error: (\S+): tasks? ([\d,\- ]+): (.+)$")
_NODE_FAILURE = re.compile(r"^srun: error: Node failure on (\S+)")
# From here on srun ends the other ranks: because one failed, or because SLURM ends the job. Older
# versions write "srun: launch/slurm: _step_signal: Terminating StepId=1.0".
_ENDING = re.compile(
    r"^srun: (?:(?:launch/slurm: \S+ )?(?:Terminating|Force Terminated) |Job step aborted)"
)
_EXITED = re.compile(r"Exited with exit code (\d+)")
# By the signal itself, or as `abort.py` does.
_BY_TERM = re.compile(r"Terminated\b|Exited with exit code 143$")
# srun started no rank, because its options do not fit the job: it would fail again ...
_REFUSED = re.compile(
    r"^srun: (?:fatal: (?!.*(?:connect|communicat|[Cc]ould not))"
    r"|(?:unrecognized|invalid|ambiguous) option|error: Only allocated \d+ nodes asked for "
    r"|error: Unable to create step for job \d+: "
    r"(?:More processors|Invalid|Requested node configuration|Memory required))"
)
# Newer versions (24.11, 26.05) then wait for ever, and say no more than "Requested nodes are busy".
_NEVER = re.compile(r"^srun: Job step's .* Job step may never run\.")
# ... or for another reason, which may be temporary.
_NO_STEP = re.compile(
    r"^srun: (?:fatal: |error: Unable to )"
    r"|srun: (?:not found|command not found|No such file or directory|Permission denied)$"
)
_OUT_OF_MEMORY = re.compile(r"out.of.memory|oom.kill", re.IGNORECASE)
# Errors of the machine, not of the program: its node is excluded from the next attempt.
_HARDWARE = re.compile(
    r"ECC error|hardware stack error|unspecified launch failure|fallen off the bus"
    r"|no CUDA-capable device|devices? (?:is|are) busy or unavailable|CUDA driver initialization"
    r"|unhandled (?:system|cuda) error|ncclSystemError|NVLink",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Death:
    """A rank that ended otherwise than with exit code 0.

    Attributes:
        rank: Which one.
        node: Where it ran; empty for a local run.
        how: srun's words: "Killed", "Exited with exit code 1", "Out Of Memory".
        first: It died before srun started to end all ranks.
        of_peer: Its last log line on another rank, if NCCL aborted it for that; else empty.
    """

    rank: int
    node: str
    how: str
    first: bool
    of_peer: str = ""

    @property
    def by_signal(self) -> bool:
        return _EXITED.match(self.how) is None

    @property
    def by_term(self) -> bool:
        """TERM ended it.

        SLURM sends TERM to the other ranks when one fails: from 26.05 on by itself, possibly before
        srun has reported anything.
        """
        return _BY_TERM.match(self.how) is not None


@dataclass(frozen=True)
class Evidence:
    """What is left of an attempt.

    Attributes:
        exit_code: srun's; None where nobody saw it end.
        failures: The ranks' failure reports.
        deaths: As srun reports them, in its order.
        lost_nodes: Nodes that srun or SLURM say are gone.
        nodes: The attempt's nodes, in the order of their ranks.
        world_size: Its ranks; as many on each node.
        stopped: What SLURM itself did to the job, if anything.
        silent_srun: Nobody saw srun end, and it printed nothing, if it ran at all. Where SLURM ends
            a job, srun always prints that it ends the ranks.
        not_started: srun's message why it started no rank; empty if it started them.
    """

    exit_code: int | None = None
    failures: Sequence[Failure] = ()
    deaths: Sequence[Death] = ()
    lost_nodes: Sequence[str] = ()
    nodes: Sequence[str] = ()
    world_size: int = 1
    stopped: Cause | None = None
    silent_srun: bool = False
    not_started: str = ""


@dataclass(frozen=True)
class Verdict:
    """Why an attempt ended, and on which rank, where that is known.

    Attributes:
        suspect: The rank's node may be broken.
    """

    cause: Cause
    error: str = ""
    rank: int | None = None
    node: str = ""
    step: int | None = None
    traceback: str = ""
    suspect: bool = False


def judge(evidence: Evidence) -> Verdict:
    """Find the cause of an attempt's end."""
    return (
        _lost_node(evidence)
        or _reported(evidence.failures)
        or _died(evidence, [death for death in evidence.deaths if death.first])
        or _silent_node(evidence)
        or _lost_batch_host(evidence)
        or _stopped(evidence)
        or _not_started(evidence)
        or _died(evidence, evidence.deaths)
        or _without_a_word(evidence)
    )


def read_srun(text: str) -> tuple[list[Death], list[str]]:
    """Read srun's messages: the ranks that died, and the nodes that were lost."""
    deaths: list[Death] = []
    lost: list[str] = []
    first = True
    for line in text.splitlines():
        if _ENDING.match(line):
            first = False
        elif match := _NODE_FAILURE.match(line):
            lost.append(match[1])
        elif match := _DEATH.match(line):
            deaths += [Death(rank, match[1], match[3], first) for rank in _ranks(match[2])]
    return deaths, lost


def why_not_started(text: str) -> str:
    """Return srun's message why it started no rank; empty if there is none."""
    lines = [line.strip() for line in text.splitlines()]
    refused = [line for line in lines if _REFUSED.match(line)]
    not_started = [line for line in lines if _NO_STEP.search(line)]
    # A warning, where the ranks are started after all.
    never = [line for line in lines if _NEVER.match(line)] if not_started else []
    return next(iter(refused or never or not_started), "")


def _ranks(text: str) -> Iterable[int]:
    """Expand "0,2-3"."""
    for part in text.replace(" ", "").split(","):
        begin, _, end = part.partition("-")
        yield from range(int(begin), int(end or begin) + 1)


def _lost_node(evidence: Evidence) -> Verdict | None:
    if not evidence.lost_nodes:
        return None
    return _of_node(evidence, evidence.lost_nodes[0], f"node {evidence.lost_nodes[0]} failed")


def _of_node(evidence: Evidence, node: str, error: str) -> Verdict:
    rank = None
    if node in evidence.nodes:
        rank = evidence.nodes.index(node) * _per_node(evidence)
    return Verdict(
        Cause.NODE_FAILURE, error, rank, node, _known_step(evidence.failures), suspect=True
    )


def _per_node(evidence: Evidence) -> int:
    return max(1, evidence.world_size // max(1, len(evidence.nodes)))


def _known_step(failures: Sequence[Failure]) -> int | None:
    return max((failure.step for failure in failures if failure.step is not None), default=None)


def _reported(failures: Sequence[Failure]) -> Verdict | None:
    causes = [failure for failure in failures if not failure.consequence]
    if not causes:
        return None
    first = min(causes, key=lambda failure: failure.time)
    return Verdict(
        first.cause,
        error=first.error,
        rank=first.rank,
        node=first.node,
        step=first.step,
        traceback=first.traceback,
        suspect=first.cause in (Cause.HANG, Cause.NODE_FAILURE)
        or _HARDWARE.search(first.error) is not None,
    )


def _died(evidence: Evidence, deaths: Sequence[Death]) -> Verdict | None:
    """Return the verdict on a rank that a signal ended before it could write a report."""
    silent = [death for death in _silent(evidence) if death in deaths]
    # srun may report lack of memory after the other deaths.
    first = next(
        (death for death in silent if _OUT_OF_MEMORY.search(death.how)), next(iter(silent), None)
    )
    # If a rank exited without a report first, SLURM killed the others because of it.
    if first is None or not first.by_signal or first.of_peer:
        return None
    out_of_memory = _OUT_OF_MEMORY.search(first.how) is not None
    cause = Cause.OUT_OF_MEMORY if out_of_memory else Cause.KILLED
    what = "SLURM ended it for its memory" if out_of_memory else f"ended by a signal: {first.how}"
    return Verdict(
        cause,
        f"rank {first.rank}: {what}",
        first.rank,
        first.node,
        _known_step(evidence.failures),
        suspect=cause == Cause.KILLED,
    )


def _silent(evidence: Evidence) -> Sequence[Death]:
    """List the deaths of ranks without a report: consequences of other deaths only if all are."""
    spoke = {failure.rank for failure in evidence.failures}
    silent = [death for death in evidence.deaths if death.rank not in spoke]
    unforced = [death for death in silent if not death.by_term and not death.of_peer]
    return unforced or [death for death in silent if death.of_peer] or silent


def _silent_node(evidence: Evidence) -> Verdict | None:
    """Find the one node none of whose ranks said a word while all others saw a peer vanish."""
    if len(evidence.nodes) < 2 or not evidence.failures:
        return None
    per_node = _per_node(evidence)
    seen = {death.rank for death in evidence.deaths}
    spoke = seen | {failure.rank for failure in evidence.failures}
    ranks_of = {
        node: range(number * per_node, (number + 1) * per_node)
        for number, node in enumerate(evidence.nodes)
    }
    silent = [node for node, ranks in ranks_of.items() if spoke.isdisjoint(ranks)]
    rest = set(range(evidence.world_size)) - {r for node in silent for r in ranks_of[node]}
    if len(silent) != 1 or not rest <= {failure.rank for failure in evidence.failures}:
        return None
    return _of_node(evidence, silent[0], f"no rank of node {silent[0]} was heard of again")


def _lost_batch_host(evidence: Evidence) -> Verdict | None:
    """Find that the node of the batch script and of srun is gone, and SLURM requeued the job.

    Without srun, SLURM kills the ranks of the other nodes, often before they can say a word.
    """
    if evidence.stopped != Cause.REQUEUED or not evidence.silent_srun or not evidence.nodes:
        return None
    node = evidence.nodes[0]
    return _of_node(evidence, node, f"node {node}, which ran the batch script, was lost")


def _stopped(evidence: Evidence) -> Verdict | None:
    if evidence.stopped is None:
        return None
    return Verdict(
        evidence.stopped,
        "the ranks were ended before they had saved",
        step=_known_step(evidence.failures),
    )


def _not_started(evidence: Evidence) -> Verdict | None:
    line = evidence.not_started
    if not line or evidence.exit_code == 0 or evidence.deaths or evidence.failures:
        return None
    never = _REFUSED.match(line) or _NEVER.match(line)
    cause = Cause.MISTAKE if never else Cause.LOST
    return Verdict(cause, f"no rank was started: {line}")


def _without_a_word(evidence: Evidence) -> Verdict:
    step = _known_step(evidence.failures)
    if evidence.exit_code == 0:
        return Verdict(Cause.FINISHED, "all ranks exited with 0", step=step)
    if (death := next(iter(_silent(evidence)), None)) and death.of_peer:
        return _heard_of_peer(death.rank, death.of_peer, step)
    for death in _silent(evidence) or evidence.deaths:
        error = f"rank {death.rank}: {death.how}, without a failure report: see its log"
        return Verdict(Cause.LOST, error, death.rank, death.node, step)
    if evidence.failures:
        first = min(evidence.failures, key=lambda failure: failure.time)
        return _heard_of_peer(first.rank, first.error, step)
    code = "" if evidence.exit_code is None else f": srun's exit code is {evidence.exit_code}"
    return Verdict(Cause.LOST, f"it ended without a failure report{code}")


def _heard_of_peer(rank: int, error: str, step: int | None) -> Verdict:
    """Judge by what a rank says of others, if nothing else is known."""
    if is_time_out(error):
        what = f"a collective timed out, and no rank said why; rank {rank}: {error}"
        return Verdict(Cause.HANG, what, step=step)
    return Verdict(Cause.LOST, f"a rank vanished; what rank {rank} saw of it: {error}", step=step)
