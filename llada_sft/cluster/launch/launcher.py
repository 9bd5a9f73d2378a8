"""From a config to a job: what `launch.py` and `llada-sft resume` do.

    preflight -> run directory -> SLURM; with --local this machine, and with --here the allocation
    that the shell is in; with --prepare no further than the run directory

What only looks (--print-config, --plan, --dry-run) is in look/preview.py.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from llada_sft.cluster import door, journal, slurm
from llada_sft.cluster.batch import submit
from llada_sft.cluster.batch.options import Options, one_shots, with_extra
from llada_sft.cluster.batch.refused import check_extra
from llada_sft.cluster.launch import prepare
from llada_sft.cluster.launch.after import with_dependency
from llada_sft.cluster.launch.allocation import Allocation
from llada_sft.cluster.launch.look.preview import file_problems, launch_summary
from llada_sft.cluster.launch.request import LaunchOptions, load_request, run_dir_of
from llada_sft.cluster.owner.claim import Holder, of_batch_script
from llada_sft.cluster.owner.identity import DEFAULT_TIMEOUT_S, Doing, this_process
from llada_sft.cluster.owner.ownership import held
from llada_sft.cluster.resume import changing
from llada_sft.cluster.resume.update_code import finish_update
from llada_sft.cluster.watch.checkpoints import newest_step
from llada_sft.config import Config, load_run_config, resolve_paths
from llada_sft.config.arithmetic import nothing_to_do
from llada_sft.entry import print_or_drop
from llada_sft.errors import ConfigError, LladaSftError
from llada_sft.run_dir import RunDir


@slurm.patience()
def launch(options: LaunchOptions) -> int:
    """Do what the options ask for, and return the exit code.

    Raises:
        LladaSftError: It lists every problem that was detected.
    """
    config, origin = load_request(options)
    check_extra(config, origin)
    base = Path.cwd()
    if options.after is not None:
        config = with_dependency(config, options.after, options.submits)
    if options.submits:
        submit.require_sbatch()
    if options.here:
        Allocation.of(os.environ).require(config)
    sources = resolve_paths(config, base)
    attended = options.local or options.here
    warnings: list[str] = []
    if options.preflight:
        require_files(sources, run_dir_of(sources), options.local)
        if not options.prepare:
            warnings = _require_start(sources, attended)
    with _holder(config.run.owner_timeout_s, attended, options.prepare) as holder:
        run, is_started = prepare.create(config, base, options.command, holder.claim)
        if options.prepare:
            print(run.path)
            return 0
        print_or_drop("\n".join([*warnings, *launch_summary(sources)]))
        if is_started:
            print_or_drop(
                f"continuing    {run.path} from its last checkpoint, with its own copy of the code"
            )
        final, once = load_run_config(run.config), one_shots(config)
        return start(run, final, options.local, options.follow, once, options.here)


def require_files(config: Config, new_run: RunDir | None, local: bool) -> None:
    """Check what the ranks need of files, and that they would see them in their container.

    Raises:
        ConfigError: It has one line for each problem.
    """
    if problems := file_problems(config, new_run, local):
        raise ConfigError("\n".join(problems))


def _require_start(config: Config, local: bool) -> list[str]:
    """Check that the ranks can start; return what may be wrong, or what they would wait for.

    Raises:
        ConfigError: They would fail, or SLURM will never start them.
    """
    # Here, not above: a dry run does without multiprocessing.
    from llada_sft.cluster.preflight import submission

    if not local:
        submission.notice_allocation()
    return submission.require(config, run_dir_of(config), submits=not local)


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
            once = with_dependency(once, after, submits)
        check_extra(once)
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
        print_or_drop("\n".join([*warnings, *launch_summary(plan.sources)]))
        holder.claim(run)
        changing.apply(run, plan)
        return start(run, plan.config, local, follow, one_shots(once), here)


def _is_whole(run: RunDir, step: int) -> bool:
    """Return whether a checkpoint is intact; if not, print so: the ranks will use another one."""
    from llada_sft.training.checkpoint.manifest import first_difference

    difference = first_difference(run.checkpoints / f"step_{step}")
    if difference:
        print_or_drop(f"{difference}: the run resumes from the checkpoint before")
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
    print_or_drop(f"run directory {run.path}")
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
    is_read = print_or_drop(
        f"job           {job_id}\n"
        f"follow        {run.shell_command('logs', '--follow')}\n"
        f"stop          {run.shell_command('cancel')}\n"
        f"resume        {run.shell_command('resume')}"
    )
    if follow and is_read:
        from llada_sft.cluster.watch import logs

        return logs.follow(run, logs.Wanted())
    return 0


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
