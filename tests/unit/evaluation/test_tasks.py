"""Tasks of lm-evaluation-harness, found and loaded from files of this machine."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llada_sft.errors import ConfigError
from llada_sft.evaluation.harness.records import warnings_of
from llada_sft.evaluation.harness.tasks import ask_for_greedy, find_tasks, load_tasks
from llada_sft.evaluation.settings import load_eval_config

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def with_line(tasks_dir: Path, folder: Path, line: str) -> Path:
    folder.mkdir()
    text = (tasks_dir / "reverse.yaml").read_text()
    (folder / "reverse.yaml").write_text(f"{text}{line}\n")
    return folder


def test_shots_are_the_config_s_or_the_task_s(tasks_dir: Path, tmp_path: Path) -> None:
    def shots(folder: Path, *overrides: str) -> int:
        manager = find_tasks([folder], ["reverse"])
        task = load_tasks(manager, "reverse", load_eval_config(None, overrides))["reverse"]
        number: int = task.get_config("num_fewshot")
        return number

    assert shots(tasks_dir) == 0
    assert shots(tasks_dir, "num_fewshot=3") == 3
    own = with_line(tasks_dir, tmp_path / "two", "num_fewshot: 2")
    assert shots(own) == 2
    assert shots(own, "num_fewshot=3") == 3
    # A task that says 0 means it.
    none = with_line(tasks_dir, tmp_path / "none", "num_fewshot: 0")
    assert shots(none, "num_fewshot=3") == 0


def test_code_of_the_model_is_run_only_if_the_config_says_so(
    tasks_dir: Path, tmp_path: Path
) -> None:
    folder = with_line(tasks_dir, tmp_path / "unsafe", "unsafe_code: true")
    manager = find_tasks([folder], ["reverse"])
    with pytest.raises(ConfigError) as caught:
        load_tasks(manager, "reverse", load_eval_config(None))
    assert str(caught.value) == (
        "--tasks: reverse: runs the code that the model writes; do so in a sandbox only, and set"
        " run_unsafe_code=true"
    )
    load_tasks(manager, "reverse", load_eval_config(None, ["run_unsafe_code=true"]))


def test_a_task_whose_data_are_missing_is_one_line(tasks_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    text = (tasks_dir / "reverse.yaml").read_text().replace("words.jsonl", "gone.jsonl")
    (tmp_path / "own/reverse.yaml").write_text(text)
    manager = find_tasks([tmp_path / "own"], ["reverse"])
    with pytest.raises(ConfigError) as caught:
        load_tasks(manager, "reverse", load_eval_config(None))
    assert str(caught.value).startswith("--tasks: reverse: cannot be loaded: FileNotFoundError: ")
    assert len(str(caught.value).splitlines()) == 1


def task_of(kind: str, *metrics: str) -> Any:
    return SimpleNamespace(OUTPUT_TYPE=kind, aggregation=lambda: dict.fromkeys(metrics))


def test_greedy_is_computed_where_a_metric_asks_for_it() -> None:
    assert ask_for_greedy({"a": task_of("loglikelihood", "acc")})
    assert ask_for_greedy({"a": task_of("multiple_choice", "acc", "exact_match")})
    assert not ask_for_greedy({"a": task_of("multiple_choice", "acc")})
    assert not ask_for_greedy({"a": task_of("generate_until", "exact_match")})


@pytest.mark.parametrize(
    ("kind", "chat", "expected"),
    [
        ("generate_until", False, "a: warning: generation without a chat template: "),
        ("multiple_choice", True, "a: warning: likelihood with a chat template: "),
        ("generate_until", True, None),
        ("multiple_choice", False, None),
        ("loglikelihood_rolling", False, None),
    ],
)
def test_a_mode_that_published_numbers_do_not_have_is_a_warning(
    kind: str, chat: bool, expected: str | None
) -> None:
    lines = warnings_of("a", {"part": task_of(kind)}, chat)
    assert len(lines) == (expected is not None)
    assert all(line.startswith(expected or "") for line in lines)
