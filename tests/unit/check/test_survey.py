"""From files to what is said of them: text, JSON, findings, and the command as a user types it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from llada_sft.check import command as check_command
from llada_sft.check.findings import findings_of
from llada_sft.check.reading import BuildWorker, Worker
from llada_sft.check.report import as_json, as_text
from llada_sft.check.survey import Request, Survey, survey
from llada_sft.check.workers import Workers
from llada_sft.cli import main
from llada_sft.config import Config
from llada_sft.data.examples.tokenizer import TokenIds
from llada_sft.demo.data import make_tokenizer

ROOT = Path(__file__).parents[3]
Record = dict[str, str]


class Here:
    """Does tasks in this process."""

    def __init__(self, state: Worker) -> None:
        self._state = state

    def run(self, tasks: Iterable[Callable[[Worker], Any]]) -> Iterator[tuple[int, Any]]:
        # Whatever the order in which they are done.
        yield from reversed([(number, task(self._state)) for number, task in enumerate(tasks)])


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def project(tmp_path: Path, tokenizer_dir: Path) -> Path:
    (tmp_path / "tokenizer").symlink_to(tokenizer_dir)
    return tmp_path


def words(*texts: str) -> list[Record]:
    return [{"prompt": f"reverse {text}", "response": text[::-1]} for text in texts]


def write(folder: Path, **files: list[Any]) -> None:
    folder.mkdir()
    for name, rows in files.items():
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))


def config(project: Path, validation: bool = False, **data: Any) -> Config:
    sections = {
        "run": {"name": "checked"},
        "model": {"path": str(project / "tokenizer")},
        "data": {
            "train": str(project / "train"),
            "validation": str(project / "validation") if validation else None,
            "hook": str(ROOT / "utils/process_data.py"),
            "max_length": 64,
            **data,
        },
    }
    return Config.model_validate_json(json.dumps(sections))


def look(config: Config, ranks: int = 1, sample: int | None = None) -> Survey:
    tokenizer = make_tokenizer()
    ids = TokenIds(len(tokenizer), tokenizer.eos_token_id, tokenizer.mask_token_id)
    worker = Worker(config.data, Path(config.model.path), ids)
    return survey(Request(config, ranks, sample), cast("Workers[Worker]", Here(worker)))


def levels(found: Survey) -> dict[str, str]:
    return {finding.code: finding.level for finding in findings_of(found)}


def test_all_that_is_said_of_good_data(project: Path) -> None:
    write(project / "train", a=words("abc", "abcd"), b=words("abcde", "hhh"))
    found = look(config(project), ranks=2)
    assert findings_of(found) == []
    said = as_json(found, [])
    assert said["train"] == {
        "path": str(project / "train"),
        "sources": [
            {
                **{"name": "", "path": str(project / "train"), "shards": 2, "rows": 4},
                "format": "prompt_response (4 of the first 4 rows)",
            }
        ],
        "shards": 2,
        "rows": 4,
        "rows_read": 4,
        "examples": 4,
        "bad_rows": {"rows": 0, "by_reason": {}, "first": []},
        "left_out_rows": 0,
        "not_learned_rows": 0,
        "special_token_rows": 0,
        "already_rendered_rows": 0,
        "unread_fields": {},
        "too_long": {"clipped": 0, "skipped": 0, "share": 0.0},
        "prompt_tokens": {
            **{"mean": 15.75, "p50": 15, "p90": 17, "p99": 17, "max": 17},
            "histogram": [{"up_to": 16, "count": 3}, {"up_to": 32, "count": 1}],
        },
        "response_tokens": {
            **{"mean": 3.75, "p50": 3, "p90": 5, "p99": 5, "max": 5},
            "histogram": [{"up_to": 4, "count": 3}, {"up_to": 8, "count": 1}],
        },
        "duplicates": {"rows": 0, "first": []},
    }
    # 15 + 3, 16 + 4; 17 + 5, 15 + 3; and one EOS each: micro-batches of one.
    assert [(one["tokens"], one["steps"]) for one in said["per_rank"]] == [(40, 2), (42, 2)]
    assert said["epoch"] == {
        **{"steps": 2, "examples": 4, "tokens": 82, "all_tokens": 82, "fill": 1.0},
        "network_positions": 82,
        **{"response_tokens": 19, "eos_tokens": 4, "eos_share": pytest.approx(4 / 19)},
        "eos_share_of_loss": pytest.approx((1 / 4 + 1 / 5 + 1 / 6 + 1 / 4) / 4),
        "void_tokens": 0,
        **{"idle_share": 0.0, "tokens_max_over_mean": pytest.approx(42 / 41)},
    }
    assert (said["ok"], said["estimated"], said["ranks"], said["validation"]) == (
        *(True, False, 2, None),
    )
    assert [one["pieces"][1:] for one in said["examples"]] == [
        [{"kind": "response", "text": "cba"}, {"kind": "end", "text": "<|endoftext|>"}],
        [{"kind": "response", "text": "edcba"}, {"kind": "end", "text": "<|endoftext|>"}],
    ]
    text = as_text(found, [], colour=False)
    assert "rows             4 in 2 shards\n" in text
    assert "  rank 1         42 tokens, 2 examples, 2 steps\n" in text
    assert text.endswith("nothing would stop or spoil the run")


def test_bad_rows_are_named_and_counted(project: Path) -> None:
    write(project / "train", a=[*words("abc", "abd"), "{", {"prompt": "a"}], b=words("abe"))
    found = look(config(project))
    assert levels(found) == {"bad_rows": "problem"}
    (finding,) = findings_of(found)
    assert finding.message == (
        "rank 0: 2 of its 5 rows are bad, data.max_bad_fraction allows 0: fix them, or allow more"
    )
    bad = as_json(found, [])["train"]["bad_rows"]
    assert (bad["rows"], bad["by_reason"]) == (2, {"bad_record": 1, "not_json": 1})
    assert [Path(row["file"]).name + f":{row['line']}" for row in bad["first"]] == [
        "a.jsonl:3",
        "a.jsonl:4",
    ]
    text = as_text(found, findings_of(found), colour=False)
    assert f"{project}/train/a.jsonl:3 (byte 90): not JSON: " in text
    assert look(config(project, max_bad_fraction=0.4)).epoch[0].stopped_by is None


def test_what_stands_twice_and_what_stands_in_validation(project: Path) -> None:
    again = {"response": "cba", "prompt": "reverse abc"}
    write(project / "train", a=[*words("abc", "abd"), again, *words("abd")], b=words("abe"))
    write(project / "validation", v=words("abe", "abf"))
    found = look(config(project, validation=True))
    assert levels(found) == {"leakage": "problem", "duplicates": "warning"}
    said = as_json(found, [])
    train, validation = project / "train", project / "validation"
    assert said["train"]["duplicates"] == {
        "rows": 2,
        "first": [
            (f"{train}/a.jsonl:3", f"{train}/a.jsonl:1"),
            (f"{train}/a.jsonl:4", f"{train}/a.jsonl:2"),
        ],
    }
    assert said["validation"]["in_train"] == 1
    assert said["train_rows_in_validation"] == {
        "rows": 1,
        "first": [(f"{train}/b.jsonl:1", f"{validation}/v.jsonl:1")],
    }


def test_only_the_validation_rows_that_are_used_count(project: Path) -> None:
    write(project / "train", a=words("abc"))
    write(project / "validation", v=[*words("abd"), *words("abc"), "{"])
    whole = config(project, validation=True)
    assert levels(look(whole)) == {"bad_validation_rows": "problem", "leakage": "problem"}
    few = whole.model_copy(
        update={"train": whole.train.model_copy(update={"validation_max_rows": 1})}
    )
    assert findings_of(look(few)) == []


@pytest.mark.parametrize(
    ("files", "data", "ranks", "expected"),
    [
        ({"a": words("abc")}, {}, 2, {"too_few_shards": "problem"}),
        ({"a": []}, {}, 1, {"no_examples": "problem"}),
        (
            {"a": words("abc", "abcde")},
            {"max_length": 10},
            1,
            {"no_examples": "problem", "all_too_long": "problem"},
        ),
        (
            {"a": words("abc", "abcde")},
            {"max_length": 18},
            1,
            {"all_too_long": "problem"},
        ),
        ({"a": words("abc", "abd", "abcde")}, {"max_length": 20}, 1, {"too_long": "warning"}),
        (
            {"a": words(*(f"{a}{b}c" for a in "abcd" for b in "efg"), "abcde")},
            {"max_length": 20},
            1,
            {"cut_answers": "warning"},
        ),
        (
            {"a": words(*(f"{a}{b}c" for a in "abcd" for b in "efg"), "abcde")},
            {"max_length": 20, "eos_after_cut": True},
            1,
            {},
        ),
        (
            {"a": [{"prompt": "a", "response": "b<|eot_id|>"}]},
            {},
            1,
            {"special_tokens": "warning", "lossy_tokenizer": "warning"},
        ),
        (
            {"a": [{"prompt": "<|startoftext|>a", "response": "b"}]},
            {},
            1,
            {
                "special_tokens": "warning",
                "already_rendered": "problem",
                "lossy_tokenizer": "warning",
            },
        ),
        (
            {"a": [{"prompt": "a", "response": "b", "id": 1}]},
            {},
            1,
            {"unread_fields": "warning"},
        ),
        (
            {"a": [{"prompt": "a", "response": "b", "id": 1}]},
            {"ignore_fields": ["id"]},
            1,
            {},
        ),
        # The demo's tokenizer has few letters.
        ({"a": [{"prompt": "Ω", "response": "b"}]}, {}, 1, {"lossy_tokenizer": "warning"}),
        ({"a": words("abc", "abd"), "b": words("abe", "abf")}, {}, 2, {}),
        ({"a": words("abc", "abd", "abe"), "b": []}, {}, 3, {"too_few_shards": "problem"}),
        ({"a": words("abc"), "b": [], "c": []}, {}, 3, {"imbalance": "problem"}),
        (
            {"a": words("abc", "abd", "abe"), "b": words("abf", "abg")},
            {},
            2,
            {"imbalance": "warning"},
        ),
        ({"a": words("abc")}, {"end": 9}, 1, {"eos": "warning"}),
    ],
)
def test_findings(
    project: Path,
    files: dict[str, list[Any]],
    data: dict[str, Any],
    ranks: int,
    expected: dict[str, str],
) -> None:
    write(project / "train", **files)
    assert levels(look(config(project, **data), ranks)) == expected


MANY = [*(f"{a}{b}c" for a in "abcd" for b in "efg"), "abcde"]


@pytest.mark.parametrize(
    ("files", "data", "ranks", "message"),
    [
        (
            {"a": []},
            {},
            1,
            "{train}: no row makes an example that could be learned ({counts}): see data.format,"
            " data.hook and data.max_length",
        ),
        (
            {"a": words("abc", "abd", "abcde")},
            {"max_length": 20},
            1,
            "33.3% of the examples are longer than data.max_length (20): 1 cut, 0 skipped",
        ),
        (
            {"a": words(*MANY)},
            {"max_length": 20},
            1,
            "7.7% of the examples are longer than data.max_length (20): 1 cut, 0 skipped; no EOS"
            " follows them (data.eos_after_cut)",
        ),
        (
            {"a": [{"prompt": "<|startoftext|>a", "response": "b"}]},
            {},
            1,
            "1 rows begin with BOS or a header, as if a chat template had rendered them, and are"
            " rendered once more: store what was rendered as data.format: text with"
            " data.special_tokens_in_text: token, or store the turns",
        ),
        (
            {"a": [{"prompt": "Ω", "response": "b"}]},
            {},
            1,
            "the tokenizer does not give back every text that it encodes: 'Ω' becomes",
        ),
        (
            {"a": words("abc", "abd", "abe"), "b": words("abf", "abg")},
            {},
            2,
            "ranks have no rows left in 17% of their steps: write the rows into shards of one size"
            " with  llada-sft shard",
        ),
        (
            {"a": words("abc", "abc")},
            {},
            1,
            "1 of 2 rows repeat another: they are learned as often",
        ),
        (
            {"a": words("abc")},
            {"end": 9},
            1,
            "of the loss is learning the end padding: set data.end to a small number, or use"
            " smaller micro-batches",
        ),
    ],
)
def test_what_findings_say(
    project: Path, files: dict[str, list[Any]], data: dict[str, Any], ranks: int, message: str
) -> None:
    write(project / "train", **files)
    found = look(config(project, **data), ranks)
    expected = message.format(train=project / "train", counts=found.train.counts)
    assert [one.message for one in findings_of(found) if expected in one.message] != []


def test_what_is_noticed_of_rows_is_said(project: Path) -> None:
    def chat() -> dict[str, Any]:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        return {"messages": [turn | {"name": "A"} for turn in turns[:1]] + turns[1:], "id": 1}

    left_out = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "weight": 0},
        ]
    }
    special = {"messages": [{"role": "user", "content": "<|eot_id|>"}, *chat()["messages"][1:]]}
    write(project / "train", a=[chat(), chat(), left_out, special])
    found = look(config(project))
    said = as_json(found, findings_of(found))
    expected = {
        "left_out_rows": 1,
        "not_learned_rows": 1,
        "special_token_rows": 1,
        "already_rendered_rows": 0,
        "unread_fields": {"id": 2, "messages[].name": 2},
    }
    assert said["train"].items() >= expected.items()
    text = as_text(found, findings_of(found), colour=False)
    for line in (
        "skipped          1 (25.00%): no turn of theirs is to be learned\n",
        "special tokens   in the text of 1 (25.00%) rows\n",
        "not read         'id' (2), 'messages[].name' (2); data.ignore_fields silences this\n",
        "warning: 1 rows have special tokens in their text; they are encoded as the characters they"
        " are (data.special_tokens_in_text: text)\n",
        "warning: fields that the format does not read: 'id' (2), 'messages[].name' (2);"
        " data.ignore_fields silences this",
    ):
        assert line in text


def test_a_sample_is_marked_as_such(project: Path) -> None:
    texts = [f"{a}{b}{c}" for a in "abcdefgh" for b in "abcd" for c in "ef"]
    write(project / "train", a=words(*texts[:40]), b=words(*texts[40:]))
    found = look(config(project), ranks=2, sample=8)
    said = as_json(found, [])
    assert (said["estimated"], said["train"]["rows"], said["train"]["rows_read"]) == (True, 64, 8)
    # All rows are equally long.
    assert [(one["tokens"], one["steps"]) for one in said["per_rank"]] == [(760, 40), (456, 24)]
    assert "steps            ≈ 40\n" in as_text(found, [], colour=False)
    whole = look(config(project), ranks=2, sample=64)
    assert not whole.estimated
    assert whole.epoch == look(config(project), ranks=2).epoch


CONFIG = """
run: {name: checked}
model: {path: tokenizer, init: random, size:
  {d_model: 8, n_layers: 1, n_heads: 1, mlp_hidden_size: 8}}
data: {train: train, hook: hook.py, max_length: 64}
slurm: {ranks_per_node: 1}
"""
HOOK = """
import os, signal
from llada_sft.data.records import encode_record

def process_data(record, tokenizer, max_length):
    print("of the hook")
    if record.get("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    return encode_record(record, tokenizer)
"""


def command(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (project / "config.yaml").write_text(CONFIG)
    (project / "hook.py").write_text(HOOK)
    return subprocess.run(
        [sys.executable, "-m", "llada_sft", "check", "config.yaml", *arguments],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(project)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_problems_are_exit_code_1_and_json_is_alone_on_standard_output(project: Path) -> None:
    write(project / "train", a=[*words("abc"), "{"])
    done = command(project, "--json")
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    assert not said["ok"]
    assert [finding["code"] for finding in said["findings"]] == ["bad_rows"]
    assert "of the hook" in done.stderr


@pytest.mark.slow
def test_a_killed_process_is_one_line_and_exit_code_2(project: Path) -> None:
    write(project / "train", a=[{"kill": 1, **words("abc")[0]}])
    done = command(project)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    *_, last = done.stderr.removeprefix("of the hook\n").splitlines(keepends=True)
    assert "a reading process was killed by SIGKILL; " in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--ranks", "0"], "--ranks: must be at least 1, got 0\n"),
        (["data.trian=a"], "override 'data.trian=a': data.trian: unknown key; "),
        (["data.train=nothing"], "/nothing: no such folder or file\n"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    problem: str,
) -> None:
    write(project / "train", a=[{}])
    (project / "config.yaml").write_text(CONFIG)
    (project / "hook.py").write_text(HOOK)
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "argv", ["llada-sft", "check", "config.yaml", *arguments])
    assert main() == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert problem in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("terminal", "no_color", "coloured"),
    [(True, "", True), (True, "1", False), (False, "", False), (False, "1", False)],
)
def test_colours_are_for_a_terminal(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terminal: bool,
    no_color: str,
    coloured: bool,
) -> None:
    @contextmanager
    def here(build: BuildWorker, num_processes: int) -> Iterator[Here]:
        yield Here(build())

    write(project / "train", a=words("abc"))
    monkeypatch.setattr(check_command, "Workers", here)
    monkeypatch.setenv("NO_COLOR", no_color)
    # The command sets it.
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    tokenizer = make_tokenizer()
    ids = TokenIds(len(tokenizer), tokenizer.eos_token_id, tokenizer.mask_token_id)
    request = Request(config(project), ranks=1, sample=None)
    assert check_command.run_check(request, ids, json=False) == 0
    text = capsys.readouterr().out
    assert ("\x1b[32mcba" in text) is coloured
    assert ("[response] cba" in text) is not coloured
