"""What an evaluation knows of a model directory before its network is loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llada_sft.errors import DataError
from llada_sft.evaluation.harness.records import depends_on
from llada_sft.evaluation.loaded import LoadedModel
from llada_sft.evaluation.settings import EvalConfig


@pytest.fixture
def copied(model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_dir, tmp_path / "model"))


def change(file: Path, **values: Any) -> None:
    there = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(there | values))


def answers_depend_on(directory: Path) -> dict[str, Any]:
    return depends_on(LoadedModel(directory, "fp32"), EvalConfig(), chat=False, versions={})


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"rope_theta": 10000.0}),
        ("generation_config.json", {"suppress_tokens": [7]}),
        ("tokenizer_config.json", {"bos_token": "a"}),
    ],
)
def test_answers_depend_on_what_is_next_to_the_weights(
    copied: Path, file: str, values: dict[str, Any]
) -> None:
    before = answers_depend_on(copied)
    assert answers_depend_on(copied) == before
    change(copied / file, **values)
    assert answers_depend_on(copied) != before


def test_the_tokenizer_of_another_model_is_refused(copied: Path) -> None:
    tokens = json.loads((copied / "tokenizer.json").read_text())
    tokens["added_tokens"].append({**tokens["added_tokens"][0], "id": 20, "content": "<more>"})
    change(copied / "tokenizer.json", **tokens)
    with pytest.raises(DataError) as error:
        LoadedModel(copied, "fp32")
    assert str(error.value) == (
        f"{copied}: tokenizer.json has tokens up to 20, config.json rows for 20:"
        " they are not of one model"
    )
