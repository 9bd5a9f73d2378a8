"""What a launch would be: --print-config, --plan and --dry-run, which write and submit nothing.

The launcher prints the same summary, and checks the same files, before it submits.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from llada_sft.cluster.batch import container, sbatch_environment
from llada_sft.cluster.batch.directives import sbatch_text
from llada_sft.cluster.batch.options import one_shots, with_extra
from llada_sft.cluster.batch.refused import check_extra
from llada_sft.cluster.launch.request import LaunchOptions, load_request, resolved, run_dir_of
from llada_sft.cluster.preflight import files
from llada_sft.config import Config, resolve_paths
from llada_sft.config.arithmetic import RowCount, batch_arithmetic
from llada_sft.config.reader import dump_with_origins
from llada_sft.config.yaml12 import KeyPath
from llada_sft.errors import EXIT_CODE, LladaSftError
from llada_sft.run_dir import RunDir


def preview(options: LaunchOptions) -> int:
    """Print what the options ask to see, and return the exit code.

    Raises:
        LladaSftError: It lists every problem that was detected.
    """
    config, origin = load_request(options)
    check_extra(config, origin)
    base = Path.cwd()
    if options.print_config:
        return _print_config(config, base, origin)
    if options.plan:
        return _print_plan(config, base, options)
    if options.after is not None:
        from llada_sft.cluster.launch.after import with_dependency

        config = with_dependency(config, options.after, options.submits)
    return _dry_run(config, base)


def _print_config(config: Config, base: Path, origin: Callable[[KeyPath], str]) -> int:
    config = resolve_paths(config, base)
    print(dump_with_origins(config, origin), end="")
    print("\n".join(f"# {line}" for line in launch_summary(config)))
    return 0


def _print_plan(config: Config, base: Path, options: LaunchOptions) -> int:
    from llada_sft.plan.report import Assumptions, plan_lines

    speed = None
    if options.measured is not None:
        from llada_sft.cluster.launch.look.measured import measured_speed

        speed = measured_speed(base / options.measured)
    assumed = Assumptions(options.gpu, options.mfu, options.tokens, speed)
    print("\n".join(plan_lines(resolve_paths(config, base), assumed)))
    return 0


def _dry_run(config: Config, base: Path) -> int:
    final = resolved(config, base)
    run = run_dir_of(final)
    once = {**final.slurm.extra, **one_shots(config)}
    print(sbatch_text(with_extra(final, once), run))
    for line in sbatch_environment.lines(os.environ, config):
        print(line)
    problems = file_problems(resolve_paths(config, base), run, local=False)
    for problem in problems:
        print(problem, file=sys.stderr)
    return EXIT_CODE if problems else 0


def file_problems(config: Config, new_run: RunDir | None, local: bool) -> list[str]:
    in_container = [] if local else list(container.problems(config))
    return [*files.find_problems(config, new_run), *in_container]


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

    Remote and unreadable sources have none.
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


def launch_summary(config: Config) -> list[str]:
    """Return the record formats of a config with absolute paths, and its batch arithmetic."""
    records = [f"records          {line}" for line in record_formats(config)]
    return records + batch_arithmetic(config, count_rows_of_run(config))
