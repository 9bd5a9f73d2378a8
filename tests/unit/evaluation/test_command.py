"""`llada-sft eval` on this machine: scores, records, and mistakes before torch is imported."""

import json
import math
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llada_sft import cli
from llada_sft.evaluation import command
from llada_sft.evaluation.engine import Engine
from tests.unit.evaluation.project import WORDS

ROOT = Path(__file__).parents[3]
SHORT = ["generation.gen_length=8", "generation.block_length=4"]
# Runs a command as the shell does, and says what it has imported.
SCRIPT = """
import sys
from llada_sft.cli import main
code = main()
print(code, sorted({"torch", "transformers", "lm_eval"} & sys.modules.keys()))
"""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def evaluate(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["llada-sft", "eval", *map(str, arguments)])
    return cli.main()


def results_of(folder: Path, task: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the results and the samples of a task."""
    (own,) = folder.glob(f"{task}_*")
    samples = (own / f"samples_{task}.jsonl").read_text().splitlines()
    return json.loads((own / "results.json").read_text()), [json.loads(line) for line in samples]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_tasks_are_scored_and_recorded(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_dir: Path,
    tasks_dir: Path,
    tmp_path: Path,
) -> None:
    arguments = [model_dir, "--tasks", "reverse,choose", "--include-path", tasks_dir]
    arguments += ["--results", tmp_path / "out", *SHORT]
    assert evaluate(monkeypatch, *arguments) == 0
    shown = capsys.readouterr()
    assert "choose: warning: likelihood with a chat template" in shown.err
    assert "reverse: warning" not in shown.err
    assert "exact_match" in shown.out

    results, samples = results_of(tmp_path / "out", "reverse")
    assert results["n-samples"]["reverse"] == {"original": len(WORDS), "effective": len(WORDS)}
    record = results["llada_sft"]["tasks"]["reverse"]
    assert record["mode"] == "generation"
    assert record["generation"]["steps"] == record["generation"]["gen_length"] == 8
    assert record["eos_rule"] == "cut at the first of <|endoftext|>, <|eot_id|>"
    assert record["until"] == []
    for name in ("num_fewshot", "chat_template", "dtype", "device", "batch_size", "remasking"):
        assert name in record
    assert results["llada_sft"]["versions"]["torch"]
    assert [len(sample["llada_sft"]) for sample in samples] == [1] * len(WORDS)
    assert samples[0]["llada_sft"][0].keys() >= {"uncut", "until", "num_passes"}
    assert samples[0]["arguments"][0][0].count("<|startoftext|>") == 1

    results, samples = results_of(tmp_path / "out", "choose")
    assert results["llada_sft"]["tasks"]["choose"]["mode"] == "likelihood"
    assert results["llada_sft"]["tasks"]["choose"]["likelihood"]["num_draws"] == 128
    answers = samples[0]["llada_sft"]
    assert [answer["value"] for answer in answers] == [
        pytest.approx(resp[0][0]) for resp in samples[0]["resps"]
    ]
    right = [max(range(3), key=lambda i: s["resps"][i][0][0]) == 0 for s in samples]
    assert results["results"]["choose"]["acc,none"] == pytest.approx(sum(right) / len(right))

    def forbidden(*_: object) -> None:
        raise AssertionError("an answer was computed again")

    monkeypatch.setattr(Engine, "_generate", forbidden)
    monkeypatch.setattr(Engine, "_score", forbidden)
    assert evaluate(monkeypatch, *arguments, "generation.batch_size=2") == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_base_model_is_told_what_generation_means(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_dir: Path,
    tasks_dir: Path,
    tmp_path: Path,
) -> None:
    arguments = [model_dir, "--tasks", "reverse", "--include-path", tasks_dir, "chat=false"]
    arguments += ["--results", tmp_path, *SHORT, "limit=2"]
    assert evaluate(monkeypatch, *arguments) == 0
    assert "reverse: warning: generation without a chat template" in capsys.readouterr().err
    results, samples = results_of(tmp_path, "reverse")
    assert len(samples) == 2
    record = results["llada_sft"]["tasks"]["reverse"]
    assert (record["until"], record["chat_template"], record["limit"]) == ([" "], None, 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_perplexity_is_of_whole_texts(
    monkeypatch: pytest.MonkeyPatch, model_dir: Path, tasks_dir: Path, tmp_path: Path
) -> None:
    arguments = [model_dir, "--tasks", "text", "--include-path", tasks_dir, "chat=false"]
    assert evaluate(monkeypatch, *arguments, "--results", tmp_path) == 0
    results, samples = results_of(tmp_path, "text")
    values = [sample["llada_sft"][0]["value"] for sample in samples]
    expected = math.exp(-sum(values) / sum(map(len, WORDS)))
    assert results["results"]["text"]["byte_perplexity,none"] == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_mistyped_task_is_one_line_before_a_rank_is_started(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_dir: Path,
    tasks_dir: Path,
) -> None:
    monkeypatch.setattr(command, "run_ranks", lambda *_: pytest.fail("a rank was started"))
    include = ["--include-path", tasks_dir]
    assert evaluate(monkeypatch, model_dir, "--tasks", "revers", *include, "--ranks", "2") == 2
    assert capsys.readouterr().err.splitlines() == [
        "--tasks: revers: no such task; did you mean 'reverse'?; tasks of your own need"
        " --include-path"
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "modle --tasks a",
            "modle: no config.json; a model is a directory in Hugging Face's layout",
        ),
        ("{model}", "--tasks: must name a task: the config has none"),
        ("{model} --tasks ,", "--tasks: must name a task: the config has none"),
        ("{model} --tasks a --include-path taks", "--include-path: {here}/taks: no such folder"),
        ("{model} --tasks a --config b.yaml", "b.yaml: cannot be read: No such file or directory"),
        (
            "{model} --tasks a limt=3",
            "override 'limt=3': limt: unknown key; did you mean 'limit'?",
        ),
        (
            "{model} --tasks a --results /dev/null/x",
            "--results: /dev/null/x: /dev/null is a file; name a folder",
        ),
        ("{model} --tasks a --ranks 0", "--ranks: must be at least 1, got 0"),
    ],
)
def test_a_mistake_is_one_line_and_torch_is_not_imported(
    model_dir: Path, tmp_path: Path, words: str, expected: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "eval", *shlex.split(words.format(model=model_dir))],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == expected.format(here=tmp_path) + "\n"
    assert done.stdout == "2 []\n"


def test_a_missing_harness_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model_dir: Path
) -> None:
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda _: None)
    assert evaluate(monkeypatch, model_dir, "--tasks", "a") == 2
    assert capsys.readouterr().err == (
        "eval: lm-evaluation-harness is not installed; run  pip install 'llada-sft[eval]'\n"
    )
