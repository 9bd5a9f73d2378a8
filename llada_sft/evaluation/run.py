"""The two steps of an evaluation: a rank computes its share, and one process writes the results.

    <results>/<task>_<digest>/
      answers/rank_R_of_W_N.jsonl   what each process answered
      results.json                  the results, as lm-evaluation-harness writes them, and how they
                                    came about, under `llada_sft`
      samples_<task>.jsonl          each document with its answers, stop strings and uncut texts

The digest is of all that an answer depends on. The same command finds its folder again.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from llada_sft.evaluation.answer_cache import AnswerCache, folder_name
from llada_sft.evaluation.engine import Engine
from llada_sft.evaluation.harness.model import HarnessModel
from llada_sft.evaluation.harness.records import VERSIONED, depends_on, warnings_of
from llada_sft.evaluation.harness.results import evaluate_task, write_results
from llada_sft.evaluation.harness.tasks import (
    ask_for_greedy,
    find_tasks,
    load_tasks,
    requests_of,
)
from llada_sft.evaluation.loaded import LoadedModel
from llada_sft.evaluation.plan import EvalPlan
from llada_sft.evaluation.settings import EvalConfig
from llada_sft.local_ranks import ALONE, Rank
from llada_sft.versions import package_versions


@dataclass(frozen=True)
class TaskRun:
    """One of the tasks of a plan, with its settings, its folder and what answers it."""

    name: str
    config: EvalConfig
    folder: Path
    engine: Engine


def compute_share(plan: EvalPlan, rank: Rank) -> None:
    """Answer this rank's share of the requests of all tasks.

    Raises:
        LladaSftError: The model or a task cannot be read.
    """
    manager = find_tasks(plan.include_paths, plan.tasks)
    for run in _task_runs(plan, rank):
        tasks = _load(manager, run)
        model = HarnessModel(engine=run.engine)
        for kind, requests in requests_of(tasks, run.config, model).items():
            asked = run.engine.asked(kind, requests)
            run.engine.compute_share(asked, rank.rank, rank.world_size)
        run.engine.cache.close()


def finish(plan: EvalPlan) -> None:
    """Write the results of all tasks; what no rank has answered is answered first.

    Raises:
        LladaSftError: The model or a task cannot be read.
    """
    manager = find_tasks(plan.include_paths, plan.tasks)
    for run in _task_runs(plan, ALONE):
        tasks = _load(manager, run)
        for line in warnings_of(run.name, tasks, run.engine.texts.chat):
            print(line, file=sys.stderr)
        results = evaluate_task(manager, run.name, run.config, run.engine)
        run.engine.cache.close()
        path = write_results(run.folder, run.engine, run.config, results)
        print(f"results: {path}")


def _load(manager: TaskManager, run: TaskRun) -> dict[str, Any]:
    """Load the parts of a task, and learn from them what is asked."""
    tasks = load_tasks(manager, run.name, run.config)
    if run.config.likelihood.check_greedy is None:
        run.engine.checks_greedy = ask_for_greedy(tasks)
    return tasks


def _task_runs(plan: EvalPlan, rank: Rank) -> Iterator[TaskRun]:
    model = LoadedModel(plan.model, plan.config.dtype, device_of(rank))
    versions = package_versions(VERSIONED)
    for name in plan.tasks:
        config = plan.config.for_task(name)
        chat = model.has_template if config.chat is None else config.chat
        folder = plan.results / folder_name(name, depends_on(model, config, chat, versions))
        cache = AnswerCache(folder / "answers", rank.rank, rank.world_size)
        engine = Engine(model, config, chat, cache)
        engine.shows_progress = rank.rank == 0
        yield TaskRun(name, config, folder, engine)


def device_of(rank: Rank) -> str:
    """Return the device of a rank: GPUs are dealt out by local rank."""
    import torch

    number = torch.cuda.device_count()
    return f"cuda:{rank.local_rank % number}" if number else "cpu"
