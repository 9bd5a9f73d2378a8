"""Why an attempt of a run ended: the words of the journal, and the exit codes.

asked to stop     preempted, time_limit, requeued, told_to_stop, cancelled: all ranks saved
a user's mistake  mistake, disk_full, nonfinite: one line says what to fix; never restarted
a fault           exception, hang, killed, out_of_memory, node_failure, lost: the restart
                  budget decides (`restart_policy.py`)
"""

from enum import StrEnum

# 0 = finished or stopped as asked, 1 = an exception, 2 = a user's mistake (`errors.EXIT_CODE`).
HANG_EXIT_CODE = 71
# The restart budget is used up: the journal says by what.
GIVEN_UP_EXIT_CODE = 70


class Cause(StrEnum):
    FINISHED = "finished"
    # SLURM took the nodes for another job.
    PREEMPTED = "preempted"
    TIME_LIMIT = "time limit"
    # `scontrol requeue`, by somebody else than us.
    REQUEUED = "requeued"
    # A signal by hand (`scancel --signal=USR2` or TERM): saved, and requeued by ourselves.
    TOLD_TO_STOP = "told to stop"
    # scancel, or Ctrl-C on a local run: saved, not requeued.
    CANCELLED = "cancelled"
    MISTAKE = "mistake"
    DISK_FULL = "disk full"
    NONFINITE = "non-finite loss"
    EXCEPTION = "exception"
    HANG = "hang"
    # A signal ended a rank without a failure report (kill -9, a crash in C).
    KILLED = "killed"
    OUT_OF_MEMORY = "out of memory"
    NODE_FAILURE = "node failure"
    # It ended without a failure report, and nothing shows why.
    LOST = "lost"


# What the user can fix: a line says how, and nothing restarts before.
FIXED_BY_THE_USER = frozenset({Cause.MISTAKE, Cause.DISK_FULL, Cause.NONFINITE})
