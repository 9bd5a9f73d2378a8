"""`llada-sft sample`, as it is typed: prompts, files, ranks, mistakes, and a kill in the middle."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llada_sft import cli
from llada_sft.answering import sample
from llada_sft.answering.answerer import Answerer
from llada_sft.answering.answers_file import AnswersFile
from llada_sft.local_ranks import Rank, rank_of

QUICK = ["--gen-length", "8", "--block-length", "4", "--steps", "4"]
ROWS = [
    {"prompt": "abcd", "response": "dcba"},
    "fe",
    {"messages": [{"role": "user", "content": "gh"}]},
    {"input_ids": [3, 4, 5]},
    {"text": "aaa"},
    {"prompt": "hgfedcba"},
    {"instruction": "cd"},
]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["llada-sft", "sample", *map(str, arguments)])
    return cli.main()


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_prompts_are_answered_in_their_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model_dir: Path
) -> None:
    asked = ["abcd", "fe", "gh"]
    options = [word for text in asked for word in ("--prompt", text)]
    assert run(monkeypatch, model_dir, *options, *QUICK) == 0
    together = capsys.readouterr().out.splitlines()
    assert len(together) == 3
    for text, answer in zip(asked, together, strict=True):
        assert run(monkeypatch, model_dir, "--prompt", text, *QUICK) == 0
        assert capsys.readouterr().out.splitlines() == [answer]


def test_a_file_is_answered_row_by_row(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_dir: Path,
    prompts: Path,
) -> None:
    out = prompts.with_name("answers.jsonl")
    assert run(monkeypatch, model_dir, "--input", prompts, "--out", out, *QUICK) == 0
    rows = rows_of(out)
    assert [row["record"] for row in rows] == ROWS
    assert [row["line"] for row in rows] == list(range(1, len(ROWS) + 1))
    assert [row.get("reference") for row in rows] == ["dcba"] + [None] * 6
    assert all(isinstance(row["answer"], str) and row["num_passes"] for row in rows)
    capsys.readouterr()
    assert run(monkeypatch, model_dir, "--prompt", "fe", *QUICK) == 0
    assert capsys.readouterr().out == f"{rows[1]['answer']}\n"
    assert not out.with_name("answers.jsonl.partial").exists()


@pytest.mark.parametrize("sampler", ["threshold", "dual_cache", "verify"])
def test_any_sampler_and_batch_answers(
    monkeypatch: pytest.MonkeyPatch, model_dir: Path, prompts: Path, sampler: str
) -> None:
    outs = [prompts.with_name(f"{size}.jsonl") for size in (1, 3, 8)]
    for size, out in zip((1, 3, 8), outs, strict=True):
        files = ["--input", prompts, "--out", out, "--batch-size", size, "--sampler", sampler]
        assert run(monkeypatch, model_dir, *files, "--gen-length", 8, "--block-length", 4) == 0
    assert rows_of(outs[0]) == rows_of(outs[1]) == rows_of(outs[2])


def test_what_was_answered_before_a_kill_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, model_dir: Path, prompts: Path
) -> None:
    whole, out = prompts.with_name("whole.jsonl"), prompts.with_name("answers.jsonl")
    assert run(monkeypatch, model_dir, "--input", prompts, "--out", whole, *QUICK) == 0
    answers, asked = Answerer.answers, []

    def killed(self: Answerer, ids: list[list[int]], keys: list[int]) -> object:
        asked.append(sorted(keys))
        for number, batch in enumerate(answers(self, ids, keys)):
            if number == 2 and len(asked) == 1:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(Answerer, "answers", killed)
    again = ["--input", prompts, "--out", out, "--batch-size", 2, *QUICK]
    assert run(monkeypatch, model_dir, *again) == 130
    assert not out.exists()
    assert run(monkeypatch, model_dir, *again) == 0
    assert len(asked[0]) == 7 and len(asked[1]) == 3
    assert rows_of(out) == rows_of(whole)


def test_other_settings_do_not_take_over_answers(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_dir: Path,
    prompts: Path,
) -> None:
    out = prompts.with_name("answers.jsonl")
    monkeypatch.setattr(sample.AnswersFile, "finish", lambda *_: None)
    assert run(monkeypatch, model_dir, "--input", prompts, "--out", out, *QUICK) == 0
    others = [*QUICK, "--temperature", 1]
    assert run(monkeypatch, model_dir, "--input", prompts, "--out", out, *others) == 2
    assert "another request: settings was" in capsys.readouterr().err


def test_rows_that_cannot_be_asked_end_it_or_are_skipped(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_dir: Path,
    tmp_path: Path,
) -> None:
    path, out = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    path.write_text('"ab"\n{"nothing": 1}\n' + json.dumps("a" * 80) + "\n")
    assert run(monkeypatch, model_dir, "--input", path, "--out", out, *QUICK) == 2
    assert f"{path}:2: " in capsys.readouterr().err
    given = ["--input", path, "--out", out, "--skip-bad", *QUICK]
    assert run(monkeypatch, model_dir, *given) == 0
    assert "2 rows have no answer" in capsys.readouterr().out
    rows = rows_of(out)
    assert ["answer" in row for row in rows] == [True, False, False]
    assert "no known format" in str(rows[1]["error"]) and "tokens" in str(rows[2]["error"])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--input", "prompts.jsonl"], "--input and --out"),
        (["--prompt", "a", "--out", "b.jsonl"], "--input and --out"),
        (["--prompt", " "], "--prompt: number 1 is empty"),
        (["--prompt", "a" * 80, "--gen-length", "8"], "--prompt: number 1: the prompt has"),
        (["--prompt", "a", "--gen-length", "0"], "--gen-length: "),
        (["--prompt", "a", "--steps", "3", "--gen-length", "64"], "--steps: must be a multiple"),
        (["--prompt", "a", "--temperature", "nan"], "--temperature: "),
        (["--prompt", "a", "--threshold", "0.5"], "--threshold: is not a setting"),
        (["--prompt", "a", "--ranks", "2"], "--ranks: is for a file of prompts (--input)"),
        (
            ["--prompt", "a", "--complete", "--system", "b"],
            "--system: a text that is continued (--complete) has no system prompt",
        ),
        (["--input", "prompts.jsonl", "--out", "b.jsonl", "--ranks", "0"], "--ranks: "),
        (["--input", "prompts.jsonl", "--out", "b.jsonl", "--batch-size", "0"], "--batch-size: "),
        (
            ["--input", "prompts.jsonl", "--out", "b.jsonl", "--field", "a"],
            "--field: must be FIELD=NAME, got 'a'",
        ),
        (["--input", "prompts.jsonl", "--out", "no/b.jsonl/c"], "--out: "),
        (["--input", "missing.jsonl", "--out", "b.jsonl"], "missing.jsonl: cannot be read"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_dir: Path,
    prompts: Path,
    arguments: list[str],
    problem: str,
) -> None:
    monkeypatch.chdir(prompts.parent)
    (prompts.parent / "no").write_text("a file")
    assert run(monkeypatch, model_dir, *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert problem in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Rank(0, 1, 0)),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, Rank(0, 1, 0)),
        (
            {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"},
            Rank(5, 8, 1),
        ),
    ],
)
def test_a_batch_script_is_no_task(environment: dict[str, str], expected: Rank) -> None:
    assert rank_of(environment) == expected


def test_ranks_of_srun_do_not_start_ranks(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_dir: Path,
    prompts: Path,
) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    monkeypatch.chdir(prompts.parent)
    given = ["--input", "prompts.jsonl", "--out", "b.jsonl", "--ranks", "2"]
    assert run(monkeypatch, model_dir, *given) == 2
    line = "--ranks: srun has started several tasks already; remove it\n"
    assert capsys.readouterr().err == line


def command(*arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "llada_sft", "sample", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_ranks_that_were_killed_continue_in_any_number(model_dir: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    letters = "abcdefgh"
    texts = [letters[number % 8] * (1 + number % 5) for number in range(400)]
    path.write_text("".join(f"{json.dumps(text)}\n" for text in texts))
    request = [model_dir, "--input", path, "--gen-length", 32, "--batch-size", 2]
    partial = tmp_path / "answers.jsonl.partial"
    first = command(*request, "--out", out, "--ranks", 2)
    deadline = time.monotonic() + 120
    while sum(len(part.read_bytes()) for part in partial.glob("rank_*")) < 2000:
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()[0]
        time.sleep(0.05)
    children = subprocess.run(
        ["pgrep", "-P", str(first.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(children[1]), signal.SIGKILL)
    shown, _ = first.communicate(timeout=120)
    assert first.returncode == 128 + signal.SIGKILL, shown
    known = AnswersFile(out).known()
    assert 0 < len(known) < len(texts) and not out.exists()
    again = command(*request, "--out", out)
    shown, _ = again.communicate(timeout=200)
    assert again.returncode == 0, shown
    rows = rows_of(out)
    assert [row["record"] for row in rows] == texts
    assert all({**rows[number], "number": number} == row for number, row in known.items())


def test_a_network_that_attends_in_blocks_takes_its_samplers(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_dir: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "in_blocks"
    shutil.copytree(model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "decodes_in_blocks": True}))
    asked = ["--prompt", "abcd", "--gen-length", "12"]
    for sampler in ("llada2", "llada21"):
        assert run(monkeypatch, folder, *asked, "--sampler", sampler) == 0
        assert capsys.readouterr().out.strip()
    assert run(monkeypatch, folder, *asked) == 2
    assert capsys.readouterr().err.splitlines() == [
        "--sampler: must be one of llada2, llada21, got 'official': this network attends in blocks"
    ]
    assert run(monkeypatch, folder, *asked, "--sampler", "llada2", "--cfg-scale", "1") == 2
    assert capsys.readouterr().err.splitlines() == [
        "--cfg-scale: is not a setting of the sampler 'llada2'; remove it"
    ]
