"""The commands of `llada-sft` that take a run, or all of them.

Each imports what it needs when it is called; see cli.py.
"""

import argparse
import contextlib
import sys
from pathlib import Path

from llada_sft.run_dir import RunDir


def show_status(arguments: argparse.Namespace) -> None:
    """Print what a run, a sweep or all runs are doing."""
    if arguments.run is None:
        # Without the reader of configs, which takes longer to import than all runs to read.
        from llada_sft.cluster.watch import all_runs, json_status

        of_all = json_status.all_as_json if arguments.json else all_runs.as_table
        print(of_all(arguments.root))
        return
    from llada_sft.cluster.watch import json_status, status

    if folder := _sweep_folder(arguments):
        from llada_sft.cluster.watch.sweep_table import table_lines

        text = json_status.all_as_json(folder) if arguments.json else "\n".join(table_lines(folder))
        print(text)
        return
    run = _find(arguments)
    print(json_status.one_as_json(run) if arguments.json else "\n".join(status.status_lines(run)))


def show_log(arguments: argparse.Namespace) -> int:
    """Print a rank's log, or follow it; return the job's exit code then."""
    from llada_sft.cluster.watch import logs

    run = _find(arguments)
    wanted = logs.Wanted(arguments.rank, arguments.tail, arguments.attempt)
    if arguments.follow:
        return logs.follow(run, wanted)
    logs.print_log(run, wanted)
    return 0


def cancel_job(arguments: argparse.Namespace) -> None:
    """Cancel the job of a run, or the jobs of a sweep."""
    from llada_sft.cluster import slurm
    from llada_sft.cluster.watch.status import cancel_run

    if folder := _sweep_folder(arguments):
        from llada_sft.cluster.watch.sweep_table import cancel_sweep

        with slurm.patience():
            jobs = cancel_sweep(folder)
        print(f"cancelled {len(jobs)} jobs: {' '.join(jobs)}" if jobs else "no job to cancel")
        return
    run = _find(arguments)
    with slurm.patience():
        job_id = cancel_run(run)
    print(f"cancelled job {job_id}; to resume later:  {run.shell_command('resume')}")


def write_page(arguments: argparse.Namespace) -> None:
    """Write the page of some runs, or serve it."""
    from llada_sft.cluster.watch.find_run import find_run
    from llada_sft.report.command import report_runs

    runs = [find_run(word, arguments.root) for word in arguments.runs]
    report_runs(runs, arguments.out, arguments.serve)


def resume_run(arguments: argparse.Namespace) -> int:
    """Resume a run; return the exit code."""
    from llada_sft.cluster.launch.launcher import resume

    overrides = arguments.overrides
    if arguments.nodes is not None:
        overrides = [*overrides, f"slurm.nodes={arguments.nodes}"]
    local, follow, update_code = arguments.local, arguments.follow, arguments.update_code
    after, here = arguments.after, arguments.here
    return resume(_find(arguments), overrides, local, follow, update_code, after, here)


def write_export(arguments: argparse.Namespace) -> None:
    """Write a checkpoint as safetensors."""
    from llada_sft.cluster.watch.find_run import find_path
    from llada_sft.paths import look_before_export, require_average

    run, out = find_path(arguments.run, arguments.root), arguments.out
    require_average(arguments.average, arguments.adapter)
    step = look_before_export(run, out, arguments.step, arguments.best, arguments.average)
    from llada_sft.training.export import export_run

    dtype, adapter = arguments.dtype, arguments.adapter
    stacked = arguments.layout == "stacked"
    # DeepSpeed warns on stdout when it is imported.
    with contextlib.redirect_stdout(sys.stderr):
        checkpoint = export_run(run, out, dtype, step, adapter, arguments.average, stacked)
    print(f"exported {checkpoint} to {out}")


def _find(arguments: argparse.Namespace) -> RunDir:
    from llada_sft.cluster.watch.find_run import find_run

    return find_run(arguments.run, arguments.root)


def _sweep_folder(arguments: argparse.Namespace) -> Path | None:
    """Return the folder of a sweep, by its path or its name; None if it is none."""
    from llada_sft.cluster.sweep.sweep_file import is_sweep

    paths = (Path(arguments.run), arguments.root / arguments.run)
    return next(filter(is_sweep, paths), None)
