"""`llada-sft`: the commands for use before and after the launch of a run.

Each command imports what it needs when it is called, so that `status`, `logs` and `cancel` answer
on a login node without torch, and the others look at the paths that they are given before they
import it.
"""

import argparse
import sys
from pathlib import Path

from llada_sft import __version__
from llada_sft.cluster.launch import command
from llada_sft.commands import of_runs
from llada_sft.entry import exit_code, not_empty, path_argument

_EPILOG = """\
examples:
  llada-sft init mine
  llada-sft check config/zero3.yaml
  llada-sft status runs/first
  llada-sft export runs/first out/first && llada-sft chat out/first
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; `handler` is the function of the chosen command."""
    parser = argparse.ArgumentParser(
        prog="llada-sft",
        description="Prepare data, and work with runs.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EPILOG,
    )
    version = f"llada-sft {__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    _add_init(commands.add_parser("init", help="write config, hook and templates of a new project"))
    _add_launch(commands)
    _add_of_runs(commands)
    _add_report(commands.add_parser("report", help="write a run's curves and history as a page"))
    _add_shard(commands.add_parser("shard", help="make shards of .jsonl, .json, .csv, .parquet"))
    _add_sample(commands.add_parser("sample", help="answer prompts, or a file of them"))
    _add_chat(commands.add_parser("chat", help="talk to a model in the terminal"))
    _add_eval(commands.add_parser("eval", help="score a model on tasks of lm-evaluation-harness"))
    _add_check(commands.add_parser("check", help="read the data of a config before it is trained"))
    completion = commands.add_parser("completion", help="print what completes commands in a shell")
    completion.add_argument("shell", choices=["bash", "zsh"], help='use: eval "$(... bash)"')
    completion.set_defaults(handler=_completion)
    return parser


def _add_of_runs(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    status = commands.add_parser(
        "status", help="what a run, or a sweep, is doing; without it, all runs"
    )
    status.add_argument("--json", action="store_true", help="for machines; see docs/status.md")
    status.set_defaults(handler=of_runs.show_status)

    logs = commands.add_parser("logs", help="the log of a rank")
    logs.add_argument("--rank", type=int, default=0, metavar="N")
    logs.add_argument("--follow", action="store_true", help="until the job ends")
    logs.add_argument("--tail", type=_positive, metavar="N", help="only the last N lines")
    logs.add_argument("--attempt", type=_positive, metavar="K", help="of the K-th attempt")
    logs.set_defaults(handler=of_runs.show_log)

    cancel = commands.add_parser("cancel", help="stop a run's job, or those of a sweep: they save")
    cancel.set_defaults(handler=of_runs.cancel_job)

    resume = commands.add_parser("resume", help="resume from the last checkpoint")
    resume.add_argument("--nodes", type=int, metavar="N", help="the same as slurm.nodes=N")
    command.add_where(resume)
    resume.add_argument("--follow", action="store_true", help="show rank 0's log until the end")
    resume.add_argument(
        "--update-code", action="store_true", help="take the present hook, setup.sh and package"
    )
    resume.add_argument(
        "--after", metavar="RUN|JOB", help="start when that run's last job, or that job, is over"
    )
    resume.set_defaults(handler=of_runs.resume_run)

    export = commands.add_parser("export", help="write a checkpoint as safetensors")
    export.set_defaults(handler=of_runs.write_export)
    for of_run in (status, logs, cancel, resume, export):
        number = "?" if of_run is status else None
        help_text = "a run's path or name"
        of_run.add_argument("run", nargs=number, metavar="RUN", type=not_empty, help=help_text)
        _add_root(of_run)
    resume.add_argument("overrides", nargs="*", metavar="section.key=value")
    _add_export(export)


def _add_export(export: argparse.ArgumentParser) -> None:
    export.add_argument("out", metavar="OUT", type=path_argument, help="the folder to write")
    export.add_argument("--dtype", choices=["bf16", "fp32"], help="of the weights written")
    export.add_argument(
        "--average", type=int, metavar="K", default=1, help="the mean of the K newest checkpoints"
    )
    export.add_argument(
        "--layout",
        choices=["official", "stacked"],
        default="official",
        help="stacked: the experts of a layer in one tensor, as dFactory has LLaDA2's",
    )
    which = export.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="the checkpoint; without it the last")
    which.add_argument("--best", action="store_true", help="the best one by train.keep_best")
    export.add_argument(
        "--adapter", action="store_true", help="write LoRA's adapters alone, as peft loads them"
    )


def _add_init(init: argparse.ArgumentParser) -> None:
    init.add_argument(
        "folder", metavar="DIR", type=path_argument, help="may exist: no file is replaced"
    )
    init.set_defaults(handler=_init)


def _add_launch(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    launch = commands.add_parser(
        "launch",
        help="train, on SLURM or on this machine: the same as launch.py",
        description=command.DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=command.EPILOG.format(launch="llada-sft launch"),
    )
    command.add_options(launch)
    launch.set_defaults(handler=_launch)


def _add_root(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--root",
        type=path_argument,
        metavar="DIR",
        default=Path("runs"),
        help="the folder of names: run.root (default: runs)",
    )


def _add_shard(shard: argparse.ArgumentParser) -> None:
    shard.add_argument(
        "inputs", nargs="+", metavar="IN", help="a file, a folder of files, or a glob"
    )
    shard.add_argument("out", metavar="OUT", type=path_argument, help="the folder to make")
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


def _add_report(report: argparse.ArgumentParser) -> None:
    from llada_sft.report.options import add_report

    add_report(report)
    _add_root(report)
    report.set_defaults(handler=of_runs.write_page)


def _add_check(check: argparse.ArgumentParser) -> None:
    check.add_argument("config", metavar="CONFIG", type=not_empty, help="a config file")
    check.add_argument("--ranks", type=int, metavar="N", help="for N ranks, not the config's")
    check.add_argument("--sample", type=int, metavar="M", help="read M rows, and estimate the rest")
    check.add_argument("--json", action="store_true", help="for machines; see docs/check.md")
    check.add_argument("--cluster", metavar="NAME", help="a preset, as launch.py takes it")
    check.add_argument("overrides", nargs="*", metavar="section.key=value")
    check.set_defaults(handler=_check)


def _add_sample(sample: argparse.ArgumentParser) -> None:
    from llada_sft.answering.options import add_sample

    add_sample(sample)
    sample.set_defaults(handler=_sample)


def _add_chat(chat: argparse.ArgumentParser) -> None:
    from llada_sft.answering.options import add_chat

    add_chat(chat)
    chat.set_defaults(handler=_chat)


def _add_eval(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument(
        "out", metavar="OUT", type=path_argument, help="an exported or official model"
    )
    evaluate.add_argument("--tasks", metavar="A,B", help="without it all tasks of the config")
    evaluate.add_argument("--config", metavar="FILE", help="a file of config/eval/")
    evaluate.add_argument(
        "--include-path",
        type=path_argument,
        action="append",
        default=[],
        metavar="DIR",
        help="a folder with tasks of your own; may be given repeatedly",
    )
    evaluate.add_argument("--results", type=path_argument, metavar="DIR", help="default: OUT/eval")
    where = evaluate.add_mutually_exclusive_group()
    where.add_argument("--ranks", type=int, default=1, metavar="N", help="processes here")
    where.add_argument("--slurm", action="store_true", help="as a job; see the config's slurm")
    evaluate.add_argument("overrides", nargs="*", metavar="section.key=value")
    evaluate.set_defaults(handler=_eval)


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


def _init(arguments: argparse.Namespace) -> None:
    from llada_sft.commands.new_project import init

    print("\n".join(init(arguments.folder)))


def _launch(arguments: argparse.Namespace) -> int:
    return command.run(arguments, ["llada-sft", *sys.argv[1:]])


def _positive(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {word!r}")
    return int(word)


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

    given = load_config(arguments.config, arguments.overrides, arguments.cluster)
    config = resolve_paths(given, Path.cwd())
    look_before_check(config)
    from llada_sft.check.command import run_check
    from llada_sft.check.survey import Request
    from llada_sft.training.build_network import resolve_network, token_ids

    ranks = config.world_size if arguments.ranks is None else arguments.ranks
    request = Request(config, ranks, arguments.sample, progress=sys.stderr.isatty())
    ids = token_ids(resolve_network(config.model), config.objective.block_tokens)
    return run_check(request, ids, arguments.json)


def _eval(arguments: argparse.Namespace) -> int:
    from llada_sft.evaluation.command import check_tasks, plan_of, run_here
    from llada_sft.paths import look_before_sample

    look_before_sample(arguments.out)
    plan = plan_of(arguments)
    if arguments.slurm:
        from llada_sft.evaluation.job import require_sbatch_command, submit_evaluation

        require_sbatch_command()
        check_tasks(plan)
        print(submit_evaluation(plan))
        return 0
    return run_here(plan, arguments.ranks)


def _sample(arguments: argparse.Namespace) -> int:
    from llada_sft.answering.sample import sample_command
    from llada_sft.paths import look_before_sample

    look_before_sample(arguments.model)
    return sample_command(arguments)


def _chat(arguments: argparse.Namespace) -> None:
    from llada_sft.answering.options import settings_of
    from llada_sft.paths import look_before_sample

    look_before_sample(arguments.model)
    settings = settings_of(arguments)
    from llada_sft.answering.chat import chat_command

    chat_command(arguments.model, arguments.system, settings, arguments.seed)


def _completion(arguments: argparse.Namespace) -> None:
    from llada_sft.cluster.launch.completion import completion_script

    parsers = {"llada-sft": parser(), "launch.py": command.parser()}
    print(completion_script(parsers, arguments.shell))


if __name__ == "__main__":
    sys.exit(main())
