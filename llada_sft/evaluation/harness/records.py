"""What is written down of a score, so that unlike scores are not compared; and the warnings."""

from collections.abc import Mapping
from typing import Any

from llada_sft.evaluation.engine import GENERATE, Engine
from llada_sft.evaluation.loaded import LoadedModel
from llada_sft.evaluation.settings import EvalConfig, given_settings
from llada_sft.keys import digest

VERSIONED = ("llada-sft", "torch", "transformers", "tokenizers", "lm_eval", "datasets")
# Results do not depend on them, but for rounding.
_NOT_OF_ANSWERS: dict[str, Any] = {
    "slurm": True,
    "run_unsafe_code": True,
    "tasks": True,
    "likelihood": {"max_tokens": True},
    "generation": {"batch_size": True},
}


def depends_on(
    model: LoadedModel, config: EvalConfig, chat: bool, versions: Mapping[str, str | None]
) -> dict[str, Any]:
    """Return all that an answer depends on but the request, as JSON can hold it."""
    template = model.tokenizer.chat_template if chat else None
    return {
        "weights": model.weights,
        "files": model.files,
        "dtype": model.dtype,
        "device": model.device.type,
        "chat": chat,
        "template": template,
        "settings": config.model_dump(mode="json", exclude=_NOT_OF_ANSWERS),
        "versions": dict(versions),
    }


def mode_of(task: Any) -> str:
    """Return how a task is evaluated."""
    return "generation" if task.OUTPUT_TYPE == GENERATE else "likelihood"


def warnings_of(name: str, tasks: Mapping[str, Any], chat: bool) -> list[str]:
    """Return a line for each mode of a task's parts that its model's authors did not use.

    Args:
        name: The task or group.
        tasks: Its parts.
        chat: Whether prompts are rendered by a chat template.
    """
    modes = {mode_of(task) for task in tasks.values()}
    lines = []
    if "generation" in modes and not chat:
        lines.append(
            f"{name}: warning: generation without a chat template: published numbers of Instruct"
            " models have one, and those of Base models are by likelihood where there is a choice"
        )
    if "likelihood" in modes and chat:
        lines.append(
            f"{name}: warning: likelihood with a chat template: published numbers of Instruct"
            " models are by generation, and these are not comparable with them"
        )
    return lines


def record_of(engine: Engine, config: EvalConfig, tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the scores of a task's parts came about, by part.

    Args:
        engine: What answered.
        config: Settings of the task.
        tasks: Its parts.
    """
    return {part: _of_part(engine, config, task) for part, task in tasks.items()}


def _of_part(engine: Engine, config: EvalConfig, task: Any) -> dict[str, Any]:
    model, texts = engine.model, engine.texts
    record = {
        "mode": mode_of(task),
        "num_fewshot": task.get_config("num_fewshot"),
        "limit": config.limit,
        "chat_template": _digest(texts.template),
        "system_prompt": config.system_prompt,
        "fewshot_as_multiturn": texts.chat and config.fewshot_as_multiturn,
        "weights": model.weights,
        "dtype": model.dtype,
        "device": model.device_name,
        "max_length": model.max_length,
        "num_truncated": engine.num_truncated,
    }
    if record["mode"] == "likelihood":
        section = config.likelihood.model_dump(mode="json")
        return record | {"likelihood": section | {"check_greedy": engine.checks_greedy}}
    generation = config.generation
    settings = generation.sampler_settings()
    shown = given_settings(settings)
    if settings.choice[0] == "fixed":
        shown["steps"] = settings.steps or settings.gen_length
    return record | {
        "generation": shown,
        "batch_size": generation.batch_size,
        "remasking": settings.remasking,
        "until": list(engine.until(task.get_config("generation_kwargs") or {})),
        "eos_rule": f"cut at the first of {', '.join(texts.ends.values())}",
    }


def _digest(text: str | None) -> str | None:
    return None if text is None else digest(text.encode(), 8).hex()
