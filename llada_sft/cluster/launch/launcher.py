"""From a config to a job: what `launch.py` and `llada-sft resume` do.

--print-config   the config and its arithmetic, nothing written
--plan           the memory, traffic, time and disk that it will take, nothing written
--dry-run        the sbatch text, nothing written or submitted, also without SLURM
--prepare        the run directory, nothing started
otherwise        preflight -> run directory -> SLURM; with --local this machine, and with --here the
                 allocation that the shell is in
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from llada_sft.cluster import door, journal, slurm
from llada_sft.cluster.batch import sbatch_environment, submit
from llada_sft.cluster.launch import prepare
from llada_sft.cluster.launch.allocation import Allocation
from llada_sft.cluster.owner.claim import Holder, of_batch_script
from llada_sft.cluster.owner.identity import DEFAULT_TIMEOUT_S, Doing, this_process
from llada_sft.cluster.owner.ownership import held
from llada_sft.cluster.preflight import can_start, files
from llada_sft.cluster.resume import changing
from llada_sft.cluster.resume.update_code import finish_update
from llada_sft.cluster.watch import status
from llada_sft.config import (
    Config,
    dump_config,
    load_config,
    load_run_config,
    resolve_paths,
)
from llada_sft.config.arithmetic import RowCount, batch_arithmetic, nothing_to_do
from llada_sft.errors import EXIT_CODE, LladaSftError
from llada_sft.run_dir import RunDir

# Seconds for the question whether a job can start.
_START_S = 5.0


@dataclass(frozen=True)
class LaunchOptions:
    """The options of the command line."""

    config: str
    overrides: Sequence[str] = ()
    nodes: int | None = None
    local: bool = False
    here: bool = False
    dry_run: bool = False
    print_config: bool = False
    prepare: bool = False
    plan: bool = False
    gpu: str = "NVIDIA H100"
    mfu: float = 0.4
    tokens: float | None = None
    follow: bool = False
    sweep: Sequence[str] = ()
    sweep_limit: int | None = None
    # A sweep checks the first of its runs, and what differs in the others.
    preflight: bool = True
    command: Sequence[str] = field(default_factory=lambda: ["python", *sys.argv])


@slurm.patience()
def launch(options: LaunchOptions) -> int:
    """Do what the options ask for, and return the exit code.

    Raises:
        LladaSftError: It lists every problem that was detected.
    """
    config = _config(options)
    submit.check_extra(config)
    base = Path.cwd()
    if options.print_config:
        return _print_config(config, base)
    if options.plan:
        return _print_plan(config, base, options)
    if options.dry_run:
        return _dry_run(config, base)
    submits = not (options.local or options.here or options.prepare)
    if submits:
        submit.require_sbatch()
    if options.here:
        Allocation.of(os.environ).require(config)
    sources = resolve_paths(config, base)
    if options.preflight:
        files.require(sources, prepare.run_dir_of(sources))
    if submits and options.preflight:
        _require_start(sources)
    attended = options.local or options.here
    with _holder(config.run.owner_timeout_s, attended, options.prepare) as holder:
        run, is_started = prepare.create(config, base, options.command, holder.claim)
        if options.prepare:
            print(run.path)
            return 0
        print("\n".join(_summary(sources)))
        if is_started:
            print(
                f"continuing    {run.path} from its last checkpoint, with its own copy of the code"
            )
        return start(run, load_run_config(run.config), options.local, options.follow, options.here)


def _require_start(config: Config) -> None:
    """Check that SLURM can start the job, and say what it would wait for.

    Raises:
        ConfigError: It never will.
    """
    # Its own limit: what SLURM takes here must not be missing for the submission.
    with slurm.patience(_START_S):
        can_start.require(config, prepare.run_dir_of(config))
        for line in can_start.warnings(config):
            print(line)


def _config(options: LaunchOptions) -> Config:
    if options.local:
        # This is one machine, whatever number of nodes a job may get.
        extra = [f"slurm.nodes={options.nodes or 1}", "slurm.elastic=null"]
    elif (options.prepare or options.here) and _is_elastic(options):
        # slurm/train.sbatch passes what an elastic job got this time; the global batch must not
        # depend on it.
        extra = []
    elif options.here and options.nodes is None:
        extra = [f"slurm.nodes={Allocation.of(os.environ).num_nodes}"]
    elif options.nodes is None:
        extra = []
    else:
        extra = [f"slurm.nodes={options.nodes}"]
    return load_config(options.config, [*options.overrides, *extra])


def _is_elastic(options: LaunchOptions) -> bool:
    return load_config(options.config, options.overrides).slurm.elastic is not None


@slurm.patience()
def resume(
    run: RunDir,
    overrides: Sequence[str],
    local: bool,
    follow: bool,
    update_code: bool = False,
    here: bool = False,
) -> int:
    """Resume a run from its own directory, with the changes that are asked for.

    Raises:
        LladaSftError: A change is a mistake, or the run must not be started.
    """
    submits = not (local or here)
    with _holder(_timeout_of(run, overrides), not submits) as holder:
        holder.refuse(run)
        if run.update.exists():
            holder.claim(run)
            finish_update(run)
        if not update_code:
            door.require(run)
        plan = changing.plan(run, overrides, Path.cwd(), update_code)
        submit.check_extra(plan.config)
        if submits:
            submit.require_sbatch()
        if here:
            Allocation.of(os.environ).require(plan.config)
        step, max_steps = status.newest_step(run), plan.config.train.max_steps
        if max_steps is not None and step >= max_steps and _is_whole(run, step):
            print(nothing_to_do(max_steps, step))
            return 0
        files.require(plan.sources)
        if submits:
            _require_start(plan.sources)
        print("\n".join(_summary(plan.sources)))
        holder.claim(run)
        changing.apply(run, plan)
        return start(run, plan.config, local, follow, here)


def _is_whole(run: RunDir, step: int) -> bool:
    """Return whether a checkpoint is intact; if not, print so: the ranks will use another one."""
    from llada_sft.training.checkpoint.manifest import first_difference

    difference = first_difference(run.checkpoints / f"step_{step}")
    if difference:
        print(f"{difference}: the run resumes from the checkpoint before")
    return not difference


def start(run: RunDir, config: Config, local: bool, follow: bool, here: bool = False) -> int:
    """Start the ranks of a prepared run, and print how to follow and resume it.

    Args:
        run: The run directory.
        config: The config in it.
        local: Start them on this machine.
        follow: Show the log of a job until its end.
        here: Start them in the present allocation.
    """
    print(f"run directory {run.path}", flush=True)
    if local:
        from llada_sft.cluster.launch.local import run_local

        return run_local(run.path, config)
    if here:
        from llada_sft.cluster.launch.here import run_in_allocation

        return run_in_allocation(run.path, config)
    job_id = submit.submit(config, run)
    journal.append(run.journal, {"event": "launched", "job_id": job_id})
    if ownership := held(run.path):
        ownership.hand_over(job_id)
    print(
        f"job           {job_id}\n"
        f"follow        {run.shell_command('logs', '--follow')}\n"
        f"stop          scancel {job_id}\n"
        f"resume        {run.shell_command('resume')}",
        flush=True,
    )
    if follow:
        from llada_sft.cluster.watch import logs

        return logs.follow(run, rank=0)
    return 0


def count_rows_of_run(config: Config) -> RowCount | None:
    """Count the rows of the training files; None if they are missing, remote or unreadable."""
    from llada_sft.data.rows.count import count_sources
    from llada_sft.data.sources import list_sources

    try:
        return count_sources(list_sources(config.data, config.train.epochs), config.world_size)
    except LladaSftError:
        return None


def record_formats(config: Config) -> list[str]:
    """Return the record format of each source, and what is not read of its first rows.

    Remote and unreadable sources are left out.
    """
    from llada_sft.data.records.detect import detect_format
    from llada_sft.data.sources import list_sources
    from llada_sft.data.storage.files import RemoteFile

    formats = []
    with suppress(LladaSftError):
        for source in list_sources(config.data, config.train.epochs):
            of_source = f"{source.name}: " if source.name else ""
            if source.format != "auto":
                formats.append(f"{of_source}{source.format} (data.format)")
            if source.format != "raw" and not isinstance(source.shards[0].shard, RemoteFile):
                detected = detect_format(source, config.data.cache_dir)
                if source.format == "auto":
                    formats.append(f"{of_source}{detected}")
                if detected.unread:
                    formats.append(f"{of_source}{detected.unread_words}")
    return formats


def _summary(config: Config) -> list[str]:
    """Return the record formats of a config with absolute paths, and its batch arithmetic."""
    records = [f"records          {line}" for line in record_formats(config)]
    return records + batch_arithmetic(config, count_rows_of_run(config))


def _print_config(config: Config, base: Path) -> int:
    config = resolve_paths(config, base)
    print(dump_config(config), end="")
    print("\n".join(f"# {line}" for line in _summary(config)))
    return 0


def _print_plan(config: Config, base: Path, options: LaunchOptions) -> int:
    from llada_sft.plan.report import Assumptions, plan_lines

    assumed = Assumptions(options.gpu, options.mfu, options.tokens)
    print("\n".join(plan_lines(resolve_paths(config, base), assumed)))
    return 0


def _dry_run(config: Config, base: Path) -> int:
    final = prepare.resolved(config, base)
    run = prepare.run_dir_of(final)
    print(submit.sbatch_text(final, run))
    for line in sbatch_environment.lines(os.environ, config):
        print(line)
    problems = files.find_problems(resolve_paths(config, base), run)
    for problem in problems:
        print(problem, file=sys.stderr)
    return EXIT_CODE if problems else 0


def _holder(timeout_s: int, attended: bool, prepare: bool = False) -> Holder:
    """Return the future owner of the run: the batch script that prepares it, or this process."""
    if prepare and (job := of_batch_script()):
        return Holder(job)
    doing: Doing = "training" if attended else "preparing" if prepare else "launching"
    return Holder(this_process(doing, timeout_s))


def _timeout_of(run: RunDir, overrides: Sequence[str]) -> int:
    """Return `run.owner_timeout_s`, before the config or a change of it is checked."""
    try:
        return load_run_config(run.config, overrides).run.owner_timeout_s
    except LladaSftError:
        return DEFAULT_TIMEOUT_S
