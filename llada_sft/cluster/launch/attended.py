"""A run whose launcher stays at the terminal (--local and --here): its signals, and its end.

Ctrl-C reaches only the launcher, which signals the ranks to stop at their next step; a second
Ctrl-C kills them.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

from llada_sft.cluster import history, restart_policy
from llada_sft.cluster.attempt.verdict import Verdict
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.watch import status
from llada_sft.run_dir import RunDir

SHOWN_LOG_LINES = 20


@contextmanager
def forwarded_signals(send: Callable[[int], None]) -> Iterator[list[int]]:
    """Forward signals to the ranks; Ctrl-C as TERM, and a second Ctrl-C as KILL.

    Args:
        send: Sends a signal to all ranks.

    Yields:
        The signals that were received, in their order.
    """
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        is_second = number == signal.SIGINT and number in received
        received.append(number)
        forwarded = signal.SIGUSR2 if number == signal.SIGUSR2 else signal.SIGTERM
        send(signal.SIGKILL if is_second else forwarded)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code_after(
    run: RunDir,
    verdict: Verdict | None,
    failed: int | None,
    received: list[int],
    how: Literal["--local", "--here"],
) -> int:
    """Print how the run ended unless it finished, and return the launcher's exit code.

    Args:
        run: The run directory.
        verdict: Why the attempt ended; None if rank 0 has recorded it.
        failed: The rank that failed first; None if none did.
        received: The signals that the launcher received.
        how: The option that resumes the run in the same way.

    Returns:
        0 if all ranks finished; 2 for a mistake of the user's; 128 + the signal that stopped the
        run; otherwise 1, or 71 for a hang.
    """
    # A signal may also come after the last step.
    last_cause = history.read(run.journal).last_cause
    finished = verdict is None and failed is None and last_cause == Cause.FINISHED
    if received and not finished and (verdict is None or verdict.cause == Cause.CANCELLED):
        print(f"stopped; to resume:  {run.shell_command('resume', how)}", file=sys.stderr)
        return 128 + received[0]
    if failed is None:
        return 0
    cause = verdict.cause if verdict else Cause.LOST
    named = verdict.rank if verdict else None
    return _report(run, cause, failed if named is None else named)


def _report(run: RunDir, cause: Cause, failed: int) -> int:
    """Print why the run failed: the ranks' failure reports, or else the end of a log."""
    code = restart_policy.exit_code_of(cause) or 1
    if lines := status.failure_lines(run):
        print(*lines, sep="\n", file=sys.stderr)
        return code
    log = run.rank_log(failed)
    if not log.exists():
        print(f"no rank was started; what srun said is in {run.slurm}", file=sys.stderr)
        return code
    last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN_LOG_LINES:]
    print(f"rank {failed} failed; its log {log} ends:", *last, sep="\n", file=sys.stderr)
    return code
