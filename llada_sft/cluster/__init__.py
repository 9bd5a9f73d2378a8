"""The job around a training: submission, ranks, restarts, and what is written down of them.

Batch scripts use one entry point of this package, the door, and nothing else of it:
`python -m llada_sft.cluster`, see `__main__.py`. They run the *run's own copy* of the code, which
may be of another version than the launcher that wrote them: `DOOR` is the version of the door that
a copy has (`door.py`).
"""

# Increase it when `rank`, `begin`, `end` or `port` takes, prints or expects something else. Keep
# it on its own line: a launcher reads it from a run's copy of the code without importing that copy.
DOOR = 1


def run_rank(run_dir: str) -> None:
    """Train as one rank until the end, or until told to stop.

    Raises:
        SystemExit: With code 2, after a user's mistake was written to `failures/`.
    """
    # Here, not above: commands that only look at a run import this package, too.
    from llada_sft.cluster import job

    job.run(run_dir)
