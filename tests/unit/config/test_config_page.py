"""docs/config.md is what the schema says."""

import pytest
import write_config

from llada_sft.config.schema import Config
from llada_sft.evaluation.settings import (
    EvalConfig,
    GenerationSection,
    JobSection,
    LikelihoodSection,
)

REFERENCE = write_config.reference()
EVALUATION = write_config.eval_reference()


def rows(text: str = REFERENCE) -> list[list[str]]:
    return [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]


def test_every_key_is_there_with_its_meaning() -> None:
    names = {row[0].strip("|` ") for row in rows()}
    for name, field in Config.model_fields.items():
        assert f"## {name}\n" in REFERENCE, name
        assert set(getattr(field.annotation, "model_fields", ())) - {"size", "early_stop"} <= names
    assert [row[0] for row in rows() if len(row[3].strip(" |")) < 3] == []


def test_every_key_of_an_evaluation_is_there_with_its_meaning() -> None:
    shown = [row[0].strip("|` ") for row in rows(EVALUATION)]
    sections = (LikelihoodSection, GenerationSection, JobSection)
    keys = [name for section in sections for name in section.model_fields]
    of_file = set(EvalConfig.model_fields) - {"likelihood", "generation", "slurm", "tasks"}
    assert sorted(shown) == sorted([*of_file, *keys])
    assert [row[0] for row in rows(EVALUATION) if len(row[3].strip(" |")) < 3] == []


@pytest.mark.parametrize(
    "row",
    [
        "| `lr` | number > 0 | `2.5e-05` |",
        "| `precision` | `bf16`, `fp32` | `bf16` |",
        "| `max_steps` | whole number ≥ 1 or null | `null` |",
        "| `leaf_blocks` | `true`, `false` | `true` |",
        "| `offload_param` | `none`, `cpu` | `none` |",
        "| `extra` | names: text or whole number or `true`, `false` | `{}` |",
    ],
)
def test_types_limits_and_defaults(row: str) -> None:
    assert row in REFERENCE
