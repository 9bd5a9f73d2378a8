"""`launch.py --sweep`: a run for each combination of values, in one folder, each a job of its own.

    run.root/NAME/sweep.json     the runs, and their values
    run.root/NAME/lr=1e-05/      a run directory as any: its owner, journal, restarts and resume

All configs are checked before anything is written. Launched again, the same command leaves alone
what is finished or has an owner, and starts the rest.

The jobs are not tasks of one array. The last task of an array has the array's number as its
SLURM_JOB_ID: `scontrol requeue` with it restarted all tasks, a cancelled one among them, and srun
does not take the number of a task (`--jobid=1_0`) in its place (seen on 22.05.8). Our jobs requeue
themselves. `--sweep-limit K` does what `--array=...%K` would: a job waits for the end of the job
that is K places before it.
"""

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from llada_sft.cluster import history
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.launch.launcher import launch
from llada_sft.cluster.launch.look.preview import file_problems, preview
from llada_sft.cluster.launch.request import LaunchOptions, run_dir_of
from llada_sft.cluster.owner.claim import Holder
from llada_sft.cluster.owner.identity import this_process
from llada_sft.cluster.sweep.grid import SweptRun, runs_of_sweep
from llada_sft.cluster.sweep.sweep_file import RunOfSweep, add_runs
from llada_sft.cluster.watch.sweep_table import table_lines
from llada_sft.config import resolve_paths
from llada_sft.entry import print_or_drop
from llada_sft.errors import EXIT_CODE, ConfigError, LaunchError, LladaSftError
from llada_sft.run_dir import RunDir

_DEPENDENCY = "slurm.extra.dependency"
_INTERRUPTED = 128


class _Sweep(NamedTuple):
    folder: Path
    runs: Sequence[SweptRun]

    def run_dir(self, run: SweptRun) -> RunDir:
        return RunDir(self.folder / run.name)


def launch_sweep(options: LaunchOptions) -> int:
    """Launch all runs of a sweep, or show what they would be; return the exit code.

    Raises:
        LladaSftError: It lists every problem that was detected.
    """
    _check(options)
    runs = runs_of_sweep(options.config, options.overrides, options.sweep, options.cluster)
    base = Path.cwd()
    sweep = _Sweep(Path(resolve_paths(runs[0].config, base).run.root), runs)
    if options.only_looks:
        return _show(sweep, options)
    _require_folder(sweep.folder)
    _require_files(sweep, base, options.local)
    if options.local or options.here:
        return _run_in_turn(sweep, options)
    return _submit(sweep, options)


def _check(options: LaunchOptions) -> None:
    if options.follow:
        raise ConfigError(
            "--follow: shows one run: remove it, and look at all of them with  llada-sft status"
        )
    if options.sweep_limit is None:
        return
    if options.sweep_limit < 1:
        raise ConfigError(f"--sweep-limit: must be at least 1, got {options.sweep_limit}")
    if options.after is not None:
        raise ConfigError("--sweep-limit: cannot be combined with --after; remove one of them")
    if options.local or options.here or options.prepare:
        raise ConfigError("--sweep-limit: is for jobs of SLURM: remove it")


def _require_folder(folder: Path) -> None:
    """Check that the sweep's folder is not a run directory."""
    if RunDir(folder).config.exists():
        raise ConfigError(f"{folder}: is the directory of a run: choose another run.name")


def _require_files(sweep: _Sweep, base: Path, local: bool) -> None:
    """Check what the runs read, once for all that read the same.

    Raises:
        ConfigError: It has one line for each problem.
    """
    known: set[str] = set()
    problems: dict[str, None] = {}
    for run in sweep.runs:
        config = resolve_paths(run.config, base)
        key = config.model_dump_json(exclude={"run", "optim", "log"})
        if key not in known:
            known.add(key)
            found = file_problems(config, run_dir_of(config), local)
            problems |= dict.fromkeys(found)
    if problems:
        raise ConfigError("\n".join(problems))


def _options_of(run: SweptRun, options: LaunchOptions, *more: str) -> LaunchOptions:
    overrides = [*options.overrides, *run.overrides, *more]
    return replace(options, overrides=overrides, sweep=(), sweep_limit=None)


def _show(sweep: _Sweep, options: LaunchOptions) -> int:
    """Print the runs, and what was asked for of the first, or of all whose plans differ.

    Raises:
        ConfigError: Of a dry run, what would keep the others from starting.
    """
    print(f"# {len(sweep.runs)} runs in {sweep.folder}:")
    for run in sweep.runs:
        print(f"#   {run.name}")
    if not options.plan:
        print(f"# the first, {sweep.runs[0].name}:", flush=True)
        code = preview(_options_of(sweep.runs[0], options))
        if options.dry_run and code == 0:
            _require_files(sweep, Path.cwd(), local=False)
        return code
    same_plan: dict[str, list[str]] = {}
    for run in sweep.runs:
        with redirect_stdout(io.StringIO()) as text:
            preview(_options_of(run, options))
        same_plan.setdefault(text.getvalue(), []).append(run.name)
    for plan, names in same_plan.items():
        print(f"# the plan of {', '.join(names)}:\n{plan}", end="")
    return 0


def _run_in_turn(sweep: _Sweep, options: LaunchOptions) -> int:
    """Run one after another; return the exit code of the first that failed.

    Ctrl-C ends the one that runs, and the sweep.
    """
    code = 0
    for run in sweep.runs:
        directory = sweep.run_dir(run)
        if reason := _why_left_alone(directory):
            print(f"{run.name:<24} {reason}", flush=True)
            continue
        print(f"\n{run.name}", flush=True)
        _note_runs(sweep)
        try:
            own = launch(_options_of(run, options))
        except LladaSftError as error:
            print(error, file=sys.stderr)
            own = EXIT_CODE
        if own > _INTERRUPTED:
            return own
        code = code or own
    print("\n".join(["", *table_lines(sweep.folder)]))
    return code


def _submit(sweep: _Sweep, options: LaunchOptions) -> int:
    """Submit a job for each run, or only make their directories.

    Raises:
        LladaSftError: A run cannot be launched; those before it were.
    """
    jobs: list[str] = []
    launched = 0
    for run in sweep.runs:
        directory = sweep.run_dir(run)
        if reason := _why_left_alone(directory):
            print_or_drop(f"{run.name:<24} {reason}")
            continue
        dependency = list(_dependency(run, jobs, options.sweep_limit))
        one = replace(_options_of(run, options, *dependency), preflight=launched == 0)
        try:
            with redirect_stdout(io.StringIO()) as printed:
                launch(one)
        except LladaSftError as error:
            if not launched:
                raise
            raise LaunchError(
                f"{run.name}: {error}\n{launched} of {len(sweep.runs)} runs are launched; for the"
                " others, give the same command again"
            ) from None
        launched += 1
        if launched == 1:
            _note_runs(sweep)
            if not options.prepare:
                # The warnings and the arithmetic, which are those of all.
                print_or_drop(printed.getvalue().partition("run directory ")[0].rstrip("\n"))
        if options.prepare:
            print_or_drop(str(directory.path))
            continue
        job_id = history.read(directory.journal).job_id or ""
        jobs.append(job_id)
        print_or_drop(f"{run.name:<24} job {job_id}")
    if not options.prepare:
        folder = RunDir(sweep.folder)
        print_or_drop(
            f"sweep         {folder.path}\n"
            f"status        {folder.shell_command('status')}\n"
            f"stop          {folder.shell_command('cancel')}"
        )
    return 0


def _note_runs(sweep: _Sweep) -> None:
    runs = [RunOfSweep(sweep.run_dir(run), run.values) for run in sweep.runs]
    add_runs(sweep.folder, runs)


def _why_left_alone(run: RunDir) -> str:
    """Return why a run of the sweep is not started again; empty if it is started."""
    if not run.config.exists():
        return ""
    if history.read(run.journal).last_cause == Cause.FINISHED:
        return "finished: left as it is"
    try:
        Holder(this_process("launching")).refuse(run)
    except LaunchError as error:
        return f"left as it is: {error}"
    return ""


def _dependency(run: SweptRun, jobs: Sequence[str], limit: int | None) -> Iterator[str]:
    """Yield the override with which a job waits for the one that is `limit` places before it."""
    if limit is None or len(jobs) < limit:
        return
    after = f"afterany:{jobs[-limit]}"
    wanted = str(run.config.slurm.extra.get("dependency", ""))
    if "?" in wanted:
        raise ConfigError(
            f"--sweep-limit: {_DEPENDENCY}: {wanted!r} cannot be combined with it: remove one"
        )
    yield f"{_DEPENDENCY}={after}{',' if wanted else ''}{wanted}"
