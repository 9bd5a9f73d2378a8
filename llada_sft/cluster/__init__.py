"""The job around a training: submission, ranks, restarts, and what is written down of them.

    on the login node
      launcher.py     what `launch.py` and `llada-sft resume` do; local.py: ranks on this machine
      preflight.py    what would end the job on its nodes; place.py: whether run.root can be used
      prepare.py      config -> run directory; snapshot.py: code and versions; origin.py: from where
      submit.py       run directory -> job; batch_script.py, sbatch_environment.py: what sbatch gets
      changing.py     what a resume changes; fitting.py: whether data and model fit the checkpoint
      update_code.py  a run's code is replaced; code_diff.py; old_version.py: the config of before
      moved.py        a run directory that was moved or copied; door.py: versions that fit or not
    around the ranks, in the batch script
      supervisor.py   begins and ends an attempt; setup_script.py: the user's setup.sh
      evidence.py     what an attempt left; judge.py: why it ended; peers.py: errors about peers
      restarts.py     restart or not; suspects.py: nodes to exclude; ports.py: where ranks meet
    on each rank
      job.py          from signals to the training; stop_request.py; preemption.py: requeue or not
      leaving.py      a rank that failed; failures.py: its report; watchdog.py, stacks.py: hangs
      rank_journal.py what rank 0 writes into the journal
    who owns a run
      owner.py        decisions; owner_files.py: the files; owner_sight.py: what is seen of an owner
      claim.py        claiming; ownership.py: keeping and releasing; fence.py: before each write
    for whoever looks
      status.py, logs.py, ending.py (how a job ended), run_files.py (reads damaged files)
    for all
      journal.py, causes.py, slurm.py (its commands), job_states.py (its words)

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
