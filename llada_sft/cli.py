"""`llada-sft`: the commands for use before and after the launch of a run.

Each command imports what it needs when it is called, so that `status`, `logs` and `cancel` answer
on a login node without torch, and the others look at the paths that they are given before they
import it.
"""

import argparse
import sys
from pathlib import Path

from llada_sft.entry import exit_code


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; `handler` is the function of the chosen command."""
    parser = argparse.ArgumentParser(
        prog="llada-sft", description="Prepare data, and work with runs."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    status = commands.add_parser("status", help="what a run is doing")
    status.set_defaults(handler=_status)

    logs = commands.add_parser("logs", help="the log of a rank")
    logs.add_argument("--rank", type=int, default=0)
    logs.add_argument("--follow", action="store_true", help="until the job ends")
    logs.set_defaults(handler=_logs)

    cancel = commands.add_parser("cancel", help="stop a run's job: it saves and is not requeued")
    cancel.set_defaults(handler=_cancel)

    resume = commands.add_parser("resume", help="resume from the last checkpoint")
    resume.add_argument("--local", action="store_true", help="run all ranks on this machine")
    resume.add_argument("--follow", action="store_true", help="show rank 0's log until the end")
    resume.add_argument(
        "--update-code", action="store_true", help="take the present hook, setup.sh and package"
    )
    resume.set_defaults(handler=_resume)

    export = commands.add_parser("export", help="write a checkpoint as safetensors")
    export.set_defaults(handler=_export)
    for command in (status, logs, cancel, resume, export):
        command.add_argument("run", metavar="RUN", help="a run directory")
    resume.add_argument("overrides", nargs="*", metavar="section.key=value")
    export.add_argument("out", metavar="OUT", type=Path, help="the folder to write")
    export.add_argument("--dtype", choices=["bf16", "fp32"], help="of the weights written")
    which = export.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="the checkpoint; without it the last")
    which.add_argument("--best", action="store_true", help="the best one by train.keep_best")
    export.add_argument(
        "--adapter", action="store_true", help="write LoRA's adapters alone, as peft loads them"
    )

    _add_shard(commands.add_parser("shard", help="make shards of .jsonl, .json, .csv, .parquet"))
    _add_sample(commands.add_parser("sample", help="generate from an exported model"))
    _add_check(commands.add_parser("check", help="read the data of a config before it is trained"))
    return parser


def _add_shard(shard: argparse.ArgumentParser) -> None:
    shard.add_argument(
        "inputs", nargs="+", metavar="IN", help="a file, a folder of files, or a glob"
    )
    shard.add_argument("out", metavar="OUT", type=Path, help="the folder to make")
    shard.add_argument("--num-shards", required=True, type=int, help="at least one for each rank")
    shard.add_argument("--compress", choices=["zst", "gz"])
    shard.add_argument("--shuffle", action="store_true", help="put all rows in a random order")
    shard.add_argument("--seed", type=int, default=0, help="of the order")
    shard.add_argument(
        "--max-bad-fraction",
        type=float,
        metavar="F",
        default=0.01,
        help="make nothing if more of all rows are bad (default: 0.01)",
    )
    shard.set_defaults(handler=_shard)


def _add_check(check: argparse.ArgumentParser) -> None:
    check.add_argument("config", metavar="CONFIG", help="a config file")
    check.add_argument("--ranks", type=int, metavar="N", help="for N ranks, not the config's")
    check.add_argument("--sample", type=int, metavar="M", help="read M rows, and estimate the rest")
    check.add_argument("--json", action="store_true", help="for machines; see docs/check.md")
    check.add_argument("overrides", nargs="*", metavar="section.key=value")
    check.set_defaults(handler=_check)


def _add_sample(sample: argparse.ArgumentParser) -> None:
    sample.add_argument("model", metavar="MODEL", type=Path, help="an exported or official model")
    sample.add_argument("--prompt", required=True, action="append", help="may be given repeatedly")
    sample.add_argument("--steps", type=int, default=128)
    sample.add_argument("--gen-length", type=int, default=128)
    sample.add_argument("--block-length", type=int, default=32)
    sample.add_argument("--temperature", type=float, default=0.0)
    sample.add_argument("--cfg-scale", type=float, default=0.0)
    sample.add_argument(
        "--remasking", choices=["low_confidence", "random"], default="low_confidence"
    )
    sample.add_argument("--seed", type=int, default=0)
    sample.set_defaults(handler=_sample)


def main() -> int:
    """Run the command of `sys.argv` and return its exit code."""
    commands = parser()
    arguments, rest = commands.parse_known_args()
    # argparse splits `RUN --local train.max_steps=9` and rejects the trailing override:
    # put it back.
    has_overrides = hasattr(arguments, "overrides")
    if rest and (not has_overrides or any(word.startswith("-") for word in rest)):
        commands.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return exit_code(lambda: int(arguments.handler(arguments) or 0))


def _status(arguments: argparse.Namespace) -> None:
    from llada_sft.cluster.watch.status import find_run, status_lines

    print("\n".join(status_lines(find_run(arguments.run))))


def _logs(arguments: argparse.Namespace) -> int:
    from llada_sft.cluster.watch import logs
    from llada_sft.cluster.watch.status import find_run

    run = find_run(arguments.run)
    if arguments.follow:
        return logs.follow(run, arguments.rank)
    logs.print_log(run, arguments.rank)
    return 0


def _cancel(arguments: argparse.Namespace) -> None:
    from llada_sft.cluster import slurm
    from llada_sft.cluster.watch.status import cancel_run, find_run

    run = find_run(arguments.run)
    with slurm.patience():
        job_id = cancel_run(run)
    print(f"cancelled job {job_id}; to resume later:  {run.shell_command('resume')}")


def _resume(arguments: argparse.Namespace) -> int:
    from llada_sft.cluster.launch.launcher import resume
    from llada_sft.cluster.watch.status import find_run

    run = find_run(arguments.run)
    local, follow, update_code = arguments.local, arguments.follow, arguments.update_code
    return resume(run, arguments.overrides, local, follow, update_code)


def _export(arguments: argparse.Namespace) -> None:
    from llada_sft.paths import look_before_export

    run, out = Path(arguments.run), arguments.out
    step = look_before_export(run, out, arguments.step, arguments.best)
    from llada_sft.training.export import export_run

    checkpoint = export_run(run, out, arguments.dtype, step, arguments.adapter)
    print(f"exported {checkpoint} to {out}")


def _shard(arguments: argparse.Namespace) -> int:
    from llada_sft.sharding import make_shards, report
    from llada_sft.sharding.findings import TooManyBadRowsError

    try:
        written = make_shards(
            inputs=arguments.inputs,
            out=arguments.out,
            num_shards=arguments.num_shards,
            compress=arguments.compress,
            seed=arguments.seed if arguments.shuffle else None,
            max_bad_fraction=arguments.max_bad_fraction,
        )
    except TooManyBadRowsError as error:
        print(error, file=sys.stderr)
        return 1
    print(report(written, arguments.out))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from llada_sft.config import load_config, resolve_paths
    from llada_sft.paths import look_before_check

    config = resolve_paths(load_config(arguments.config, arguments.overrides), Path.cwd())
    look_before_check(config)
    from llada_sft.check.command import run_check
    from llada_sft.check.survey import Request
    from llada_sft.training.build_network import resolve_network, token_ids

    ranks = config.world_size if arguments.ranks is None else arguments.ranks
    request = Request(config, ranks, arguments.sample, progress=sys.stderr.isatty())
    return run_check(request, token_ids(resolve_network(config.model)), arguments.json)


def _sample(arguments: argparse.Namespace) -> None:
    from llada_sft.paths import look_before_sample

    look_before_sample(arguments.model)
    from llada_sft.sampling import sample_command

    sample_command(arguments)


if __name__ == "__main__":
    sys.exit(main())
