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
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from llada_sft.cluster import door, journal, slurm
from llada_sft.cluster.batch import container, sbatch_environment, submit
from llada_sft.cluster.batch.options import Options, one_shots, with_extra
from llada_sft.cluster.launch import prepare
from llada_sft.cluster.launch.after import with_dependency
from llada_sft.cluster.launch.allocation import Allocation
from llada_sft.cluster.owner.claim import Holder, of_batch_script
from llada_sft.cluster.owner.identity import DEFAULT_TIMEOUT_S, Doing, this_process
from llada_sft.cluster.owner.ownership import held
from llada_sft.cluster.preflight import files
from llada_sft.cluster.resume import changing
from llada_sft.cluster.resume.update_code import finish_update
from llada_sft.cluster.watch.checkpoints import newest_step
from llada_sft.config import Config, load_config, load_run_config, resolve_paths
from llada_sft.config.arithmetic import RowCount, batch_arithmetic, nothing_to_do
from llada_sft.config.reader import Loaded, dump_with_origins, load_with_origins
from llada_sft.config.yaml12 import KeyPath
from llada_sft.errors import EXIT_CODE, ConfigError, LladaSftError
from llada_sft.run_dir import RunDir


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
    measured: str | None = None
    follow: bool = False
    cluster: str | None = None
    after: str | None = None
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
    config, origin = _load(options)
    submit.check_extra(config, origin)
    base = Path.cwd()
    if options.print_config:
        return _print_config(config, base, origin)
    if options.plan:
        return _print_plan(config, base, options)
    submits = not (options.local or options.here or options.prepare)
    if options.after is not None:
        config = _after(config, options.after, submits)
    if options.dry_run:
        return _dry_run(config, base)
    if submits:
        submit.require_sbatch()
    if options.here:
        Allocation.of(os.environ).require(config)
    sources = resolve_paths(config, base)
    attended = options.local or options.here
    warnings: list[str] = []
    if options.preflight:
        require_files(sources, prepare.run_dir_of(sources), options.local)
        if not options.prepare:
            warnings = _require_start(sources, attended)
    with _holder(config.run.owner_timeout_s, attended, options.prepare) as holder:
        run, is_started = prepare.create(config, base, options.command, holder.claim)
        if options.prepare:
            print(run.path)
            return 0
        print("\n".join([*warnings, *_summary(sources)]))
        if is_started:
            print(
                f"continuing    {run.path} from its last checkpoint, with its own copy of the code"
            )
        final, once = load_run_config(run.config), one_shots(config)
        return start(run, final, options.local, options.follow, once, options.here)


def _after(config: Config, after: str, submits: bool) -> Config:
    if not submits:
        raise ConfigError("--after: is for a job of SLURM: remove it, --local, --here or --prepare")
    return with_dependency(config, after)


def require_files(config: Config, new_run: RunDir | None, local: bool) -> None:
    """Check what the ranks need of files, and that they would see them in their container.

    Raises:
        ConfigError: It has one line for each problem.
    """
    if problems := file_problems(config, new_run, local):
        raise ConfigError("\n".join(problems))


def file_problems(config: Config, new_run: RunDir | None, local: bool) -> list[str]:
    in_container = [] if local else list(container.problems(config))
    return [*files.find_problems(config, new_run), *in_container]


def _require_start(config: Config, local: bool) -> list[str]:
    """Check that the ranks can start; return what may be wrong, or what they would wait for.

    Raises:
        ConfigError: They would fail, or SLURM will never start them.
    """
    # Here, not above: a dry run does without multiprocessing.
    from llada_sft.cluster.preflight import submission

    if not local:
        submission.notice_allocation()
    return submission.require(config, prepare.run_dir_of(config), submits=not local)


def _load(options: LaunchOptions) -> Loaded:
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
    return load_with_origins(options.config, [*options.overrides, *extra], options.cluster)


def _is_elastic(options: LaunchOptions) -> bool:
    config = load_config(options.config, options.overrides, options.cluster)
    return config.slurm.elastic is not None


@slurm.patience()
def resume(
    run: RunDir,
    overrides: Sequence[str],
    local: bool,
    follow: bool,
    update_code: bool = False,
    after: str | None = None,
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
        once = with_extra(plan.config, {**plan.config.slurm.extra, **plan.once})
        if after is not None:
            once = _after(once, after, submits)
        submit.check_extra(once)
        if submits:
            submit.require_sbatch()
        if here:
            Allocation.of(os.environ).require(plan.config)
        step, max_steps = newest_step(run), plan.config.train.max_steps
        if max_steps is not None and step >= max_steps and _is_whole(run, step):
            print(nothing_to_do(max_steps, step))
            return 0
        require_files(plan.sources, None, local)
        warnings = _require_start(with_extra(plan.sources, once.slurm.extra), local or here)
        print("\n".join([*warnings, *_summary(plan.sources)]))
        holder.claim(run)
        changing.apply(run, plan)
        return start(run, plan.config, local, follow, one_shots(once), here)


def _is_whole(run: RunDir, step: int) -> bool:
    """Return whether a checkpoint is intact; if not, print so: the ranks will use another one."""
    from llada_sft.training.checkpoint.manifest import first_difference

    difference = first_difference(run.checkpoints / f"step_{step}")
    if difference:
        print(f"{difference}: the run resumes from the checkpoint before")
    return not difference


def start(
    run: RunDir, config: Config, local: bool, follow: bool, once: Options, here: bool = False
) -> int:
    """Start the ranks of a prepared run, and print how to follow and resume it.

    Args:
        run: The run directory.
        config: The config in it.
        local: Start them on this machine.
        follow: Show the log of a job until its end.
        once: Options of sbatch for this submission, which the config does not keep.
        here: Start them in the present allocation.
    """
    print(f"run directory {run.path}", flush=True)
    if local:
        from llada_sft.cluster.launch.local import run_local

        return run_local(run.path, config)
    if here:
        from llada_sft.cluster.launch.here import run_in_allocation

        return run_in_allocation(run.path, config)
    job_id = submit.submit(with_extra(config, {**config.slurm.extra, **once}), run)
    journal.append(run.journal, {"event": "launched", "job_id": job_id})
    if ownership := held(run.path):
        ownership.hand_over(job_id)
    print(
        f"job           {job_id}\n"
        f"follow        {run.shell_command('logs', '--follow')}\n"
        f"stop          {run.shell_command('cancel')}\n"
        f"resume        {run.shell_command('resume')}",
        flush=True,
    )
    if follow:
        from llada_sft.cluster.watch import logs

        return logs.follow(run, logs.Wanted())
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


def _print_config(config: Config, base: Path, origin: Callable[[KeyPath], str]) -> int:
    config = resolve_paths(config, base)
    print(dump_with_origins(config, origin), end="")
    print("\n".join(f"# {line}" for line in _summary(config)))
    return 0


def _print_plan(config: Config, base: Path, options: LaunchOptions) -> int:
    from llada_sft.plan.report import Assumptions, plan_lines

    speed = None
    if options.measured is not None:
        from llada_sft.cluster.launch.measured import measured_speed

        speed = measured_speed(base / options.measured)
    assumed = Assumptions(options.gpu, options.mfu, options.tokens, speed)
    print("\n".join(plan_lines(resolve_paths(config, base), assumed)))
    return 0


def _dry_run(config: Config, base: Path) -> int:
    final = prepare.resolved(config, base)
    run = prepare.run_dir_of(final)
    once = {**final.slurm.extra, **one_shots(config)}
    print(submit.sbatch_text(with_extra(final, once), run))
    for line in sbatch_environment.lines(os.environ, config):
        print(line)
    problems = file_problems(resolve_paths(config, base), run, local=False)
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
