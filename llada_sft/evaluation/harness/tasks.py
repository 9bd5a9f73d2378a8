"""Tasks of lm-evaluation-harness: found by name, and the requests that they make.

`llada-sft eval` asks for each task twice. First the ranks make its requests and answer their
shares; then one process lets lm-evaluation-harness make them again, and finds all answers.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.evaluator_utils import get_sample_size
from lm_eval.tasks import TaskManager

from llada_sft.errors import ConfigError
from llada_sft.evaluation.harness.model import HarnessModel
from llada_sft.evaluation.settings import EvalConfig


def find_tasks(include_paths: Sequence[Path], names: Sequence[str]) -> TaskManager:
    """Return where tasks are found.

    Folders of one's own are looked at first: the thousands of files that lm-evaluation-harness
    brings are read only if a task is not there.

    Raises:
        ConfigError: A task is nowhere; one line for each.
    """
    paths = [str(path) for path in include_paths]
    manager = TaskManager(include_path=paths, include_defaults=False)
    if all(name in manager.task_index for name in names):
        return manager
    manager = TaskManager(include_path=paths)
    unknown = [name for name in names if name not in manager.task_index]
    if unknown:
        raise ConfigError("\n".join(_no_task(name, manager.all_tasks) for name in unknown))
    return manager


def _no_task(name: str, known: Sequence[str]) -> str:
    similar = difflib.get_close_matches(name, known, n=1)
    advice = f"did you mean {similar[0]!r}?" if similar else "list them with  lm_eval ls tasks"
    return f"--tasks: {name}: no such task; {advice}; tasks of your own need --include-path"


def load_tasks(manager: TaskManager, name: str, config: EvalConfig) -> dict[str, Any]:
    """Load a task, or all tasks of a group, by their names, as `simple_evaluate` does.

    Raises:
        ConfigError: Its data or its settings cannot be read.
    """
    try:
        tasks: dict[str, Any] = manager.load([name])["tasks"]
    except Exception as error:
        what = " ".join(str(error).split())
        raise ConfigError(
            f"--tasks: {name}: cannot be loaded: {type(error).__name__}: {what}"
        ) from None
    for part, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False) and not config.run_unsafe_code:
            raise ConfigError(
                f"--tasks: {part}: runs the code that the model writes; do so in a sandbox only,"
                " and set run_unsafe_code=true"
            )
        own = task.get_config("num_fewshot")
        if config.num_fewshot is not None and own != 0:
            task.set_config(key="num_fewshot", value=config.num_fewshot)
        elif own is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=config.fewshot_seed)
    return tasks


def ask_for_greedy(tasks: dict[str, Any]) -> bool:
    """Return whether a metric of a task is of whether the model would give an answer."""
    return any(
        task.OUTPUT_TYPE == "loglikelihood"
        or (task.OUTPUT_TYPE == "multiple_choice" and "exact_match" in task.aggregation())
        for task in tasks.values()
    )


def requests_of(
    tasks: dict[str, Any], config: EvalConfig, model: HarnessModel
) -> dict[str, list[tuple[Any, ...]]]:
    """Return the arguments of all requests of tasks, by the method that answers them."""
    requests: dict[str, list[tuple[Any, ...]]] = {}
    chat = model.engine.texts.chat
    for task in tasks.values():
        task.build_all_requests(
            limit=get_sample_size(task, config.limit),
            system_instruction=config.system_prompt,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat and config.fewshot_as_multiturn,
            chat_template=model.apply_chat_template if chat else None,
            tokenizer_name=model.tokenizer_name if chat else "",
        )
        for instance in task.instances:
            same = requests.setdefault(instance.request_type, [])
            same += [instance.args] * (instance.repeats or 1)
    return requests
