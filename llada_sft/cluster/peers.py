"""Errors of gloo, NCCL and their store that are a consequence: another rank is gone or late.

A rank that notices this only in a collective cannot know what happened to its peer. The peer's own
failure report, or srun, says that.
"""

import re

_GONE = re.compile(
    r"Connection (?:was )?(?:likely )?(?:closed|reset|refused)|Broken pipe|recvValue|sendBytes"
    r"|ncclRemoteError|remote process exited|NCCL communicator was aborted"
)
_TIMED_OUT = re.compile(
    # gloo
    r"Timed out waiting \d+ ?ms for|Application timeout caused pair closure|Connect timeout \["
    r"|failed to pass monitoredBarrier"
    # NCCL
    r"|collective operation timeout|NCCL operations have failed or timed out|watchdog got stuck for"
    # the store
    r"|wait timeout after \d+ ?ms, keys|client socket has timed out after|Socket Timeout"
    r"|Timed out after \d+ seconds waiting for clients"
)


def is_of_peer(error: BaseException) -> bool:
    """Return whether an exception says only that another rank is gone or late.

    A hook's own broken connection is an `OSError`; those of torch are `RuntimeError`.
    """
    text = str(error)
    return isinstance(error, RuntimeError) and (_GONE.search(text) is not None or is_time_out(text))


def is_time_out(text: str) -> bool:
    """Return whether an error says that a collective has timed out."""
    return _TIMED_OUT.search(text) is not None


def last_line_of_peer(log: str) -> str:
    """Return the last line of a rank's log that is about a peer; empty if there is none.

    NCCL's watchdog writes it, and then aborts the process without a Python exception.
    """
    lines = [line for line in log.splitlines() if _GONE.search(line) or is_time_out(line)]
    return lines[-1].strip() if lines else ""
