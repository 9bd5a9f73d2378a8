"""The job around a training: submission, ranks, restarts, and what is written down of them.

    launch/     on the login node: config -> run directory, or ranks on this machine
    preflight/  what would end the job, or keep it from starting
    batch/      run directory -> job
    sweep/      many runs of one config
    resume/     what a resume changes, and whether it fits
    attempt/    around the ranks, in the batch script
    rank/       on each rank
    watch/      status, logs and endings, for people
    owner/      one process or job owns a run directory

    __main__.py        the door: `rank`, `begin`, `end`, `step` and `port`
    door.py            versions of the door that fit or not
    journal.py         what happened to a run, one JSON line each; history.py: its attempts
    causes.py          why an attempt ended: the words, and the exit codes
    failures.py        failure reports of ranks; peers.py: errors that another rank caused
    restart_policy.py  restart or not
    moved.py           a run directory that was moved or copied
    run_files.py       reads the files of a run, whatever state they are in
    slurm.py           SLURM's commands; job_states.py: its words for the state of a job

Batch scripts use one entry point of this package, the door, and nothing else of it:
`python -m llada_sft.cluster`, see `__main__.py`. They run the *run's own copy* of the code, which
may be of another version than the launcher that wrote them: `DOOR` is the version of the door that
a copy has (`door.py`).
"""

# Increase it when `rank`, `begin`, `end` or `port` takes, prints or expects something else. Keep
# it on its own line: a launcher reads it from a run's copy of the code without importing that copy.
DOOR = 1


def run_rank(run_dir: str) -> None:
    """Train as one rank until the end, or until a signal asks to stop.

    Raises:
        SystemExit: With code 2, after a user's mistake was written to `failures/`.
    """
    # Here, not above: commands that only look at a run import this package, too.
    from llada_sft.cluster.rank import main

    main.run(run_dir)
