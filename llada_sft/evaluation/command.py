"""`llada-sft eval`: everything is looked at first, then it runs here or as a SLURM job."""

import importlib.util
import sys
from argparse import Namespace
from pathlib import Path

from llada_sft.errors import ConfigError
from llada_sft.evaluation.plan import EvalPlan
from llada_sft.evaluation.settings import load_eval_config
from llada_sft.local_ranks import run_ranks


def plan_of(arguments: Namespace) -> EvalPlan:
    """Return the evaluation that a command asks for, without importing torch.

    Raises:
        ConfigError: Its settings or paths are wrong, or lm-evaluation-harness is not installed.
    """
    config = load_eval_config(arguments.config, arguments.overrides)
    names = [name.strip() for name in (arguments.tasks or "").split(",") if name.strip()]
    tasks = tuple(names or config.tasks)
    if not tasks:
        raise ConfigError("--tasks: must name a task: the config has none")
    include = tuple(path.absolute() for path in arguments.include_path)
    for path in include:
        if not path.is_dir():
            raise ConfigError(f"--include-path: {path}: no such folder")
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "eval: lm-evaluation-harness is not installed; run  pip install 'llada-sft[eval]'"
        )
    model: Path = arguments.out.absolute()
    results = arguments.results or arguments.out / "eval"
    there = next(path for path in (results, *results.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"--results: {results}: {there} is a file; name a folder")
    return EvalPlan(model, results.absolute(), tasks, include, config)


def run_here(plan: EvalPlan, ranks: int) -> int:
    """Evaluate on this machine, and return the exit code.

    Raises:
        LladaSftError: The model or a task cannot be read.
    """
    if ranks < 1:
        raise ConfigError(f"--ranks: must be at least 1, got {ranks}")
    check_tasks(plan)
    command = [sys.executable, "-m", "llada_sft.evaluation", "rank", plan.to_json()]
    if ranks > 1 and (code := run_ranks(ranks, command)):
        return code
    from llada_sft.evaluation.run import finish

    finish(plan)
    return 0


def check_tasks(plan: EvalPlan) -> None:
    """Look for the tasks before anything is started or submitted: this takes seconds.

    Raises:
        ConfigError: A task is nowhere.
    """
    from llada_sft.evaluation.harness.tasks import find_tasks

    find_tasks(plan.include_paths, plan.tasks)
