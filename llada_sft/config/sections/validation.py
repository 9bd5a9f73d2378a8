"""The section `validation`: what is done with the rows of `data.validation`, and its numbers."""

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from llada_sft.choices import SamplerName
from llada_sft.config.values import NonEmptyStr, PositiveInt, Section

# Of the numbers of a set, those by which checkpoints can be compared: the lower, the better.
LOWER_IS_BETTER = ("loss", "bound", "perplexity")


class ValidationConfig(Section):
    # Masks of each row, each of another noise level: a row costs as many forward passes. The more,
    # the less the numbers depend on the masks (docs/validation.md).
    draws: Annotated[int, Field(ge=1, le=1024)] = 4
    # Held-out prompts that are answered at each validation, and logged as texts next to their
    # references: in logs/answers.jsonl and TensorBoard. 0 = none.
    answers: Annotated[int, Field(ge=0, le=256)] = 0
    # Tokens of an answer, at most. Prompts that leave no room for it within the model's
    # max_sequence_length are not chosen.
    answer_length: Annotated[int, Field(ge=1, le=4096)] = 128
    # What answers them (docs/samplers.md). null = official, one forward pass for each token; of a
    # network that attends in blocks llada2. Others need fewer passes, and stop at EOS.
    sampler: SamplerName | None = None


class EarlyStopConfig(Section):
    # A number of the validation, as in the log.
    metric: NonEmptyStr = "validation_loss"
    # Validations in a row without a lower one, after which the training ends.
    patience: PositiveInt


def metric_name(set_name: str, number: str) -> str:
    """Return what a number of a validation set is called in the logs.

    Args:
        set_name: Empty where `data.validation` is one folder.
        number: "loss", "bound", ...
    """
    if set_name:
        return f"validation/{set_name}/{number}"
    return "validation_loss" if number == "loss" else f"validation/{number}"


def require_comparable(key: str, metric: str | None, set_names: Iterable[str]) -> None:
    """Check that a key names a number by which checkpoints can be compared, or none.

    Args:
        key: Of the config.
        metric: Its value.
        set_names: Of `data.validation`; without any there are no numbers.

    Raises:
        ValueError: It does not; the text has the names that it could have.
    """
    if metric is None:
        return
    known = [metric_name(name, number) for name in set_names for number in LOWER_IS_BETTER]
    if not known:
        raise ValueError(f"{key}: needs data.validation, which is null; set it")
    if metric not in known:
        raise ValueError(f"{key}: must be one of {', '.join(known)}, got {metric!r}")
