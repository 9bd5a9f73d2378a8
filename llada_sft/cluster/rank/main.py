"""What runs on each rank: `run(run_dir)`, with the rank variables of SLURM, torchrun or --local.

The order is: signal handlers, the rank's place, the watchdog, the config from the run directory,
and only then torch and the training. A user's mistake is one line in `failures/rank_N.json` and
exit code 2: any code but 0 makes `srun --kill-on-bad-exit` end the other ranks. After an exception
a rank exits at once (`abort.py`). The supervisor decides what follows from either
(`attempt/supervisor.py`).
"""

import gc
import os
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

from llada_sft.cluster import history, restart_policy
from llada_sft.cluster.causes import GIVEN_UP_EXIT_CODE, Cause
from llada_sft.cluster.history import History
from llada_sft.cluster.journal import Entry
from llada_sft.cluster.owner import ownership
from llada_sft.cluster.owner.ownership import Ownership
from llada_sft.cluster.rank.abort import Leaving, exit_in_time
from llada_sft.cluster.rank.journal_writer import RankJournal
from llada_sft.cluster.rank.lean_imports import lean_imports
from llada_sft.cluster.rank.log_sections import first_line
from llada_sft.cluster.rank.phases import RankPhase, record_phase
from llada_sft.cluster.rank.shown import say_mistake
from llada_sft.cluster.rank.signals import StopRequest
from llada_sft.cluster.rank.stopping import RankJob, after_stop
from llada_sft.cluster.rank.watchdog import Watchdog
from llada_sft.config import Config, load_config
from llada_sft.config.arithmetic import attempt_line, on_nodes
from llada_sft.errors import (
    EXIT_CODE,
    ConfigError,
    LaunchError,
    LladaSftError,
    NodeError,
    NonFiniteError,
    PeerFailedError,
    SaveError,
    SupersededError,
)
from llada_sft.placement import Placement
from llada_sft.run_dir import RunDir

# Mistakes of the user's that have their own cause in the journal.
_CAUSES_OF_MISTAKES = {SaveError: Cause.DISK_FULL, NonFiniteError: Cause.NONFINITE}
# What SLURM, torchrun and --local call the four numbers of a rank.
SLURM_VARIABLES = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODEID")
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK")
LOCAL_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK")
# Not 2: these are not mistakes of the user's.
NOT_REQUEUED_EXIT_CODE = NODE_EXIT_CODE = 1


class _Rank(NamedTuple):
    """One rank of an attempt, and the parts that surround its training."""

    run: RunDir
    placement: Placement
    stop: StopRequest
    leaving: Leaving
    watchdog: Watchdog
    ownership: Ownership | None
    node: str

    def record_phase(self, attempt: int, phase: str, total_steps: int | None) -> None:
        """Let `status` know what this rank does."""
        record_phase(
            self.run,
            RankPhase(
                rank=self.placement.rank,
                attempt=attempt,
                phase=phase,
                since=time.time(),
                node=self.node,
                total_steps=total_steps,
            ),
        )


def run(run_dir: str) -> None:
    """Train as one rank until the end, or until a signal asks to stop; then exit in time.

    Raises:
        SystemExit: With code 2, after a user's mistake was written to `failures/`.
    """
    try:
        _run(run_dir)
    except SystemExit as end:
        exit_in_time(end.code if isinstance(end.code, int) else 1)
        raise
    exit_in_time(0)


def _run(run_dir: str) -> None:
    stop = StopRequest()
    stop.install()
    run_path = RunDir(Path(run_dir))
    leaving = Leaving(run_path, 0)
    try:
        ownership.refuse_rank(run_path, os.environ)
        placement = placement_from(os.environ)
        owned = ownership.of_rank(run_path, placement.rank, os.environ)
        leaving = Leaving(run_path, placement.rank)
        leaving.exit_when_a_peer_failed()
        node = os.environ.get("SLURMD_NODENAME", "")
        with Watchdog(run_path, placement, node) as watchdog:
            leaving.answer_hang = watchdog.answer
            _attempt(
                _Rank(
                    run=run_path,
                    placement=placement,
                    stop=stop,
                    leaving=leaving,
                    watchdog=watchdog,
                    ownership=owned,
                    node=node,
                )
            )
    except (PeerFailedError, SupersededError) as error:
        # The other rank has reported the reason; and nothing is written into another owner's run.
        print(error, file=sys.stderr, flush=True)
        raise SystemExit(EXIT_CODE) from None
    except NodeError as error:
        say_mistake(error, run_path.rank_log(0))
        leaving.report_node(error)
        raise SystemExit(NODE_EXIT_CODE) from None
    except LladaSftError as error:
        say_mistake(error, run_path.rank_log(0))
        leaving.report_failure(_CAUSES_OF_MISTAKES.get(type(error), Cause.MISTAKE), str(error))
        raise SystemExit(EXIT_CODE) from None
    except Exception as error:
        leaving.abort(error)


def placement_from(environment: Mapping[str, str]) -> Placement:
    """Read a rank's place from the variables of torchrun, SLURM or --local.

    torchrun's come first: it may run in an allocation, of which its ranks know nothing.

    Raises:
        LaunchError: A variable is missing or not a number.
    """
    names = SLURM_VARIABLES if "SLURM_PROCID" in environment else LOCAL_VARIABLES
    if "TORCHELASTIC_RUN_ID" in environment:
        names = TORCHRUN_VARIABLES
    try:
        rank, world_size, local_rank, node_rank = (int(environment[name]) for name in names)
        address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    except KeyError as error:
        raise LaunchError(
            f"{error.args[0]} is not set: start ranks with launch.py or slurm/train.sbatch"
        ) from None
    except ValueError as error:
        raise LaunchError(f"a rank variable is not a number: {error}") from None
    return Placement(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        node_rank=node_rank,
        master_addr=address,
        master_port=port,
    )


def _attempt(rank: _Rank) -> None:
    """Train; rank 0 then records in the journal how the attempt ended."""
    number = history.read(rank.run.journal).current_number
    attempt: Entry = {"attempt": number}
    print(first_line(number, rank.placement, rank.node), flush=True)
    rank.record_phase(number, "imports", None)
    if job_id := ownership.job_of(os.environ):
        attempt["job_id"] = job_id
    _check_world_size(rank)
    journal = RankJournal(rank.run.journal, attempt)
    config = load_config(rank.run.config)
    rank.watchdog.set_timeouts(config.train)
    journal.job = RankJob.of(os.environ, config.slurm.signal_lead_s)
    outcome = _train(config, rank, journal)
    if rank.placement.rank != 0:
        return
    if outcome == "finished":
        journal.ended(Cause.FINISHED, detail=journal.early_end)
    else:
        _record_stop(rank.run, journal, rank.stop, config)


def _check_world_size(rank: _Rank) -> None:
    """Check that as many ranks were started as the batch script recorded for this attempt.

    An elastic job trains on any number of nodes, but always on all the nodes that it has.
    """
    attempt = history.read(rank.run.journal).last
    if attempt is None or attempt.job_id is None:
        return
    job = (os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT") or 0))
    expected, actual = attempt.started.get("world_size"), rank.placement.world_size
    if job == (attempt.job_id, attempt.restarts) and expected not in (None, actual):
        raise LaunchError(
            f"job {job[0]}: {actual} ranks were started, and its nodes {attempt.nodes} are"
            f" to have {expected}: a variable or an option of srun is in the way (SLURM_NTASKS?);"
            " see srun in job.sbatch, or in slurm/train.sbatch"
        )


def _record_stop(run_path: RunDir, journal: RankJournal, stop: StopRequest, config: Config) -> None:
    """Record why all ranks stopped, and requeue the job if it is to continue.

    Raises:
        SystemExit: The job should continue but could not be requeued: with exit code 0 SLURM would
            report it as COMPLETED, and nobody would notice. Or the job is given up.
    """
    # Signals received after the ranks agreed are known only to this rank; they may reveal the
    # reason.
    stop_signals = sorted({*journal.stop_signals, *stop.names()})

    def given_up(cause: Cause) -> str:
        now: Entry = {"event": "ended", "attempt": journal.attempt, "cause": cause}
        entries = [*history.read(run_path.journal).entries, now]
        return restart_policy.decide(History(entries), config).given_up

    ending = after_stop(stop_signals, journal.job, journal.cause, given_up)
    detail = f"{' and '.join(stop_signals)} on {journal.signalled_ranks}"
    if ending.error:
        assert journal.job is not None
        error = (
            f"job {journal.job.job_id}: not requeued: {ending.error};"
            f" to resume from its last checkpoint:  {run_path.shell_command('resume')}"
        )
        print(error, file=sys.stderr, flush=True)
        journal.ended(ending.cause, NOT_REQUEUED_EXIT_CODE, detail, error)
        raise SystemExit(NOT_REQUEUED_EXIT_CODE)
    journal.ended(ending.cause, detail=detail)
    if ending.given_up:
        journal.given_up(ending.given_up, GIVEN_UP_EXIT_CODE)
        print(f"given up: {ending.given_up}", flush=True)
        raise SystemExit(GIVEN_UP_EXIT_CODE)


def _train(config: Config, rank: _Rank, journal: RankJournal) -> str:
    config = _of_this_attempt(config, rank.placement, rank.run)
    # torch reads it when it is imported.
    os.environ["OMP_NUM_THREADS"] = str(config.train.threads_per_rank)
    if not _uses_cuda(config):
        # DeepSpeed detects the accelerator when it is imported.
        os.environ["DS_ACCELERATOR"] = "cpu"

    # The imports create millions of objects that stay: a garbage collection takes a second.
    gc.disable()
    with lean_imports():
        from llada_sft.training.host import Host
        from llada_sft.training.ranks import leave_ranks
        from llada_sft.training.trainer import train

    gc.freeze()
    gc.enable()

    def note(entry: Mapping[str, object]) -> None:
        journal.note(cast(Entry, entry))

    def failed(error: Exception, step: int) -> None:
        # Does not return if a hang was detected: then the error is caused by a rank that has ended.
        rank.watchdog.stop()
        rank.leaving.step = step
        rank.leaving.abort(error)

    host = Host(
        stop_requested=lambda: rank.stop.requested,
        claim_signals=rank.stop.claim,
        note=note,
        stop_agreed=journal.stop_agreed,
        checkpoint_saved=journal.checkpoint_saved,
        ended_early=journal.ended_early,
        failed=failed,
        pulse=rank.watchdog.pulse,
        phase=partial(rank.record_phase, journal.attempt),
        signals=rank.stop.names,
        require_owner=rank.ownership.leave_if_lost if rank.ownership else lambda: None,
    )
    outcome = train(config, rank.run, rank.placement, host)
    leave_ranks()
    return outcome


def _uses_cuda(config: Config) -> bool:
    if config.train.accelerator != "auto":
        return config.train.accelerator == "cuda"
    import torch

    return torch.cuda.is_available()


def _of_this_attempt(config: Config, placement: Placement, run_path: RunDir) -> Config:
    """Return the config for the number of nodes that the job has, which may differ if elastic."""
    nodes, rest = divmod(placement.world_size, config.slurm.ranks_per_node)
    allowed = config.slurm.node_range
    if rest or nodes not in allowed:
        counts = " to ".join(map(str, dict.fromkeys((allowed[0], allowed[-1]))))
        ranks = [count * config.slurm.ranks_per_node for count in (allowed[0], allowed[-1])]
        raise ConfigError(
            f"{run_path.config}: {counts} nodes × {config.slurm.ranks_per_node} ranks"
            f" = {' to '.join(map(str, dict.fromkeys(ranks)))} ranks,"
            f" but {placement.world_size} were started:"
            " set slurm.nodes and slurm.ranks_per_node to what the job has"
        )
    if config.slurm.elastic is not None and placement.rank == 0:
        print(attempt_line(config, nodes), flush=True)
    return on_nodes(config, nodes)
