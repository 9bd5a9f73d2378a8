"""Scores of a task -> its folder of results."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable, make_table

from llada_sft.atomic import replacing, write_synced
from llada_sft.evaluation.answer_cache import writing_results
from llada_sft.evaluation.engine import GENERATE, ROLLING, Engine
from llada_sft.evaluation.harness.model import HarnessModel
from llada_sft.evaluation.harness.records import VERSIONED, record_of, warnings_of
from llada_sft.evaluation.harness.tasks import load_tasks
from llada_sft.evaluation.settings import EvalConfig
from llada_sft.versions import package_versions

# Fields that the answers of a sample are shown by.
_SHOWN = ("uncut", "until", "num_passes", "num_tokens", "value", "standard_error")


def evaluate_task(
    manager: TaskManager, name: str, config: EvalConfig, engine: Engine
) -> dict[str, Any]:
    """Score a task; return what lm-evaluation-harness does, with `llada_sft` added."""
    chat = engine.texts.chat
    results: dict[str, Any] = simple_evaluate(
        model=HarnessModel(engine=engine),
        tasks=[name],
        task_manager=manager,
        num_fewshot=config.num_fewshot,
        limit=config.limit,
        system_instruction=config.system_prompt,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat and config.fewshot_as_multiturn,
        fewshot_random_seed=config.fewshot_seed,
        confirm_run_unsafe_code=config.run_unsafe_code,
    )
    tasks = load_tasks(manager, name, config)
    results["llada_sft"] = {
        "tasks": record_of(engine, config, tasks),
        "warnings": warnings_of(name, tasks, chat),
        "versions": package_versions(VERSIONED),
    }
    return results


def write_results(
    folder: Path, engine: Engine, config: EvalConfig, results: dict[str, Any]
) -> Path:
    """Write the results and the samples of a task, and print its table; return the first file.

    Raises:
        ConfigError: The folder cannot be written.
    """
    print(make_table(results))
    path = folder / "results.json"
    with writing_results(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for part, samples in results.pop("samples").items():
            lines = [_json(_with_answers(sample, engine), indent=None) for sample in samples]
            _write(folder / f"samples_{part}.jsonl", "".join(f"{line}\n" for line in lines))
        _write(path, _json(results, indent=2))
    return path


def _with_answers(sample: dict[str, Any], engine: Engine) -> dict[str, Any]:
    """Add what is known of the answers of a sample."""
    shown = []
    for args in sample["arguments"]:
        (asked,) = engine.asked(_kind_of(args), [tuple(args)])
        if asked.key in engine.cache:
            entry = engine.cache[asked.key]
            shown.append({name: entry[name] for name in _SHOWN if name in entry})
    return {**sample, "llada_sft": shown}


def _kind_of(args: Sequence[Any]) -> str:
    """Return the method that has answered a request with these arguments."""
    if len(args) == 1:
        return ROLLING
    return GENERATE if isinstance(args[1], dict) else "loglikelihood"


def _json(value: object, indent: int | None) -> str:
    return json.dumps(value, indent=indent, default=handle_non_serializable, ensure_ascii=False)


def _write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        write_synced(partial, text)
