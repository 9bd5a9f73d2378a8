"""The job around a training: submission, ranks, restarts, and what is written down of them.

Batch scripts know one door, and nothing else of this package: `python -m llada_sft.cluster`, see
`__main__.py`. They run the *run's own copy* of the code, which may be of another version than the
launcher that writes them: `DOOR` says which door a copy has (`door.py`).
"""

# Count it up when `rank`, `begin`, `end` or `port` takes, prints or expects something else. Kept on
# a line of its own: a launcher reads it in a run's copy of the code, without importing that.
DOOR = 1


def run_rank(run_dir: str) -> None:
    """Train as one rank until the end, or until told to stop.

    Raises:
        SystemExit: With code 2, after a user's mistake was written to `failures/`.
    """
    # Here, not above: whoever looks at a run imports this package, too.
    from llada_sft.cluster import job

    job.run(run_dir)
