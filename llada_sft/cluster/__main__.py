"""The one door for batch scripts, for `--local` and `--here`, and for ranks started by hand.

    python -m llada_sft.cluster port
        print a free port for the ranks to meet at
    python -m llada_sft.cluster begin RUN_DIR
        before srun: record the attempt, source setup.sh, and print what that exports, as bash
    python -m llada_sft.cluster step RUN_DIR
        print, as bash, the options of srun and the container of the ranks: for slurm/train.sbatch,
        and not for runs of versions that had neither
    python -m llada_sft.cluster rank RUN_DIR
        train as one rank, as the variables of SLURM, torchrun or --local describe it
    python -m llada_sft.cluster end RUN_DIR EXIT_CODE
        after srun, with its exit code: record why the ranks ended; requeue the job or not

`llada_sft.cluster.DOOR` is the version of this interface.
"""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from llada_sft.cluster import run_rank
from llada_sft.cluster.owner.ownership import VARIABLE
from llada_sft.entry import exit_code
from llada_sft.errors import EXIT_CODE
from llada_sft.run_dir import RunDir

if TYPE_CHECKING:
    from llada_sft.cluster.attempt.evidence import BatchJob

_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
USAGE = (
    "usage: python -m llada_sft.cluster rank RUN_DIR | begin RUN_DIR | end RUN_DIR EXIT_CODE"
    " | step RUN_DIR | port"
)


def main(arguments: Sequence[str]) -> int:
    """Do what a batch script asks for, and return the exit code."""
    match arguments:
        case ["rank", path]:
            return _rank(path)
        case ["begin", path]:
            return _begin(RunDir(Path(path)))
        case ["end", path, code] if code.isdecimal():
            return _end(RunDir(Path(path)), int(code))
        case ["step", path]:
            return _step(RunDir(Path(path)))
        case ["port"]:
            return _port()
    print(USAGE, file=sys.stderr)
    return EXIT_CODE


def _rank(path: str) -> int:
    if os.environ.get(VARIABLE):
        run_rank(path)
        return 0
    # Here, not above: the ranks of a launcher do not need it.
    from llada_sft.cluster.attempt import by_hand

    ownership = by_hand.join_run(RunDir(Path(path)), os.environ)
    try:
        run_rank(path)
    finally:
        if ownership:
            ownership.release()
    return 0


def _begin(run: RunDir) -> int:
    from llada_sft.cluster.attempt import supervisor
    from llada_sft.cluster.attempt.evidence import BatchJob

    # For this process and for what setup.sh starts, as `_ignore_signals`; a thread records them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    job = BatchJob.of(os.environ)
    # The batch script evaluates stdout: messages for people go to its log.
    with redirect_stdout(sys.stderr):
        if code := supervisor.begin(run, job, job.world_size):
            return code
        threading.Thread(target=_note_signals, args=(run, job), daemon=True).start()
        code, environment = supervisor.set_up(run, run.setup_log(job.job_id, job.restarts))
    sys.stdout.buffer.write(os.fsencode(environment))
    return code


def _end(run: RunDir, srun_code: int) -> int:
    from llada_sft.cluster.attempt import supervisor
    from llada_sft.cluster.attempt.evidence import BatchJob

    _ignore_signals()
    return supervisor.end(run, BatchJob.of(os.environ), srun_code)


def _step(run: RunDir) -> int:
    from llada_sft.cluster.batch.batch_script import step_lines
    from llada_sft.config import load_run_config

    print("\n".join(step_lines(load_run_config(run.config), run, sys.executable)))
    return 0


def _port() -> int:
    from llada_sft.cluster.launch.ports import free_port

    print(free_port())
    return 0


def _ignore_signals() -> None:
    # scontrol requeue sends TERM to the batch script too, and kills it KillWait seconds later.
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _note_signals(run: RunDir, job: "BatchJob") -> None:
    """Record what SLURM does to the job while setup.sh runs: its ranks cannot do so yet."""
    from llada_sft.cluster.attempt import supervisor

    while True:
        supervisor.note_signal(run, job, signal.Signals(signal.sigwait(_SIGNALS)).name)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
