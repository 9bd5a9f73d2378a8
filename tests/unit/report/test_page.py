"""The page: all that was gathered, nothing that runs but its own scripts, and never too large."""

import hashlib
import json
import os
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from llada_sft.report import html
from llada_sft.report.gather import gather
from llada_sft.report.html import MAX_BYTES, SCRIPTS, STYLES, data_of, page_of
from llada_sft.report.limits import Limits
from llada_sft.run_dir import RunDir
from tests.report_runs import ANSWER, RECORDED, START, hostile_run, write_run

PAGE = files("llada_sft.report") / "page"
ROOT = Path(__file__).parents[3]
# Of uPlot 1.6.32; the integrity of its published package:
# sha512-KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw==
CHECKSUMS = {
    "LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
}


def embedded(page: str) -> Any:
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    return json.loads(data)


def one_run(run: RunDir) -> Any:
    return gather([run], Limits(), live=False)["runs"][0]


@pytest.mark.parametrize("name", CHECKSUMS)
def test_the_charting_library_is_the_published_one(name: str) -> None:
    content = PAGE.joinpath("uplot", name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == CHECKSUMS[name]


def test_the_page_has_all_of_its_parts() -> None:
    page = page_of([RECORDED])
    assert embedded(page)["runs"][0]["label"] == "report_run"
    assert "github.com/leeoniya/uPlot (v1.6.32)" in page
    assert "Permission is hereby granted, free of charge" in page
    assert "{{" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


def test_every_file_of_the_page_is_used() -> None:
    names = {str(path.relative_to(str(PAGE))) for path in Path(str(PAGE)).rglob("*.*")}
    assert names == {*SCRIPTS, *STYLES, "page.html"}


def test_scripts_run_by_their_hashes_alone() -> None:
    page = page_of([RECORDED])
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "connect-src" not in policy
    assert "connect-src 'self'" in html.policy(live=True)
    # Nothing is loaded from elsewhere.
    outside = re.sub(r"<script>.*?</script>|<style>.*?</style>", "", page, flags=re.DOTALL)
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", outside)


def test_the_scripts_set_no_html_and_end_no_element() -> None:
    for name in SCRIPTS:
        text = PAGE.joinpath(name).read_text(encoding="utf-8")
        assert "</script" not in text.lower()
        if not name.startswith("uplot/"):
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text
            )


def test_hostile_texts_stay_inside_of_their_element(tmp_path: Path) -> None:
    page = page_of([hostile_run(tmp_path / "run")])
    data = re.findall(r'<script type="application/json" id="data">(.*)', page)[0]
    text = data.partition("</script>")[0]
    assert not set(text) & set("<>&\u2028\u2029\u202e\0")
    assert text.isascii()
    run = json.loads(text)["runs"][0]
    assert "\u202e" in run["answers"]["steps"][0]["answers"][0]["prompt"]
    assert "</script>" in run["bad_rows"]["rows"][0][0]


def test_half_a_surrogate_pair_is_no_reason_to_fail(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", answers=[{**ANSWER, "step": 1, "prompt": "\ud83d"}])
    assert embedded(page_of([run]))["runs"][0]["answers"]["num_steps"] == 1
    page_of([run]).encode()


def test_a_long_run_is_below_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_BYTES == 3_000_000
    # A sixth of a long run, below a sixth of the limit.
    monkeypatch.setattr(html, "MAX_BYTES", MAX_BYTES // 6)
    columns = [f"column_{number}" for number in range(10)]
    rows = [f"{step}" + f",{0.1 + step / 7}" * 10 for step in range(1600)]
    metrics = "\n".join([",".join(["step", *columns]), *rows, ""])
    answers = [{**ANSWER, "step": step, "prompt": "漢" * 3000} for step in range(40)]
    journal = [START] + [{"event": "warning", "attempt": 1, "detail": "<" * 90}] * 200
    runs = [write_run(tmp_path / str(number), metrics, journal, answers) for number in range(2)]
    page = page_of(runs)
    assert len(page.encode()) < MAX_BYTES // 6
    (loss,) = {len(run["curves"]["series"]["column_7"]["x"]) for run in embedded(page)["runs"]}
    assert loss >= 100


def test_what_is_missing_is_no_problem_and_what_is_damaged_is_a_line(tmp_path: Path) -> None:
    assert one_run(write_run(tmp_path / "a", journal=[START]))["problems"] == []
    run = write_run(tmp_path / "b", metrics="step,loss\n1,2\n", config="run: [")
    run.journal.write_bytes(b'{"event": "started"}\n\x00\x00\x00\n')
    run.answers.mkdir()
    os.mkfifo(run.command)
    problems = one_run(run)["problems"]
    assert problems[0] == "journal.jsonl: 1 line cannot be read, and is not shown"
    assert problems[1].startswith(f"{run.config}:1: not YAML")
    assert problems[2] == "answers.jsonl: cannot be read: Is a directory"
    assert problems[3] == "command.txt: cannot be read: not a regular file"
    assert one_run(run)["curves"]["series"]["loss"]["y"] == [2.0]


def test_a_pipe_in_the_place_of_the_config_does_not_wait(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", journal=[START])
    os.mkfifo(run.config)
    assert one_run(run)["problems"] == ["config.yaml: cannot be read: not a regular file"]


def test_secrets_and_passwords_are_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    config = "data: {train: 'https://me:word@host/a', other: 0123456789abcdef}\n"
    run = write_run(tmp_path / "run", config=config)
    assert one_run(run)["config"] == [["data.train", "https://***@host/a"], ["data.other", "***"]]


def test_the_config_is_shown_key_by_key(tmp_path: Path) -> None:
    config = "a: {b: true, c: null, d: [1, 2], e: {}}\nf: 1.0e-3\ntrain: {max_steps: 70}\n"
    run = one_run(write_run(tmp_path / "run", config=config))
    assert run["config"] == [
        ["a.b", "true"],
        ["a.c", "null"],
        ["a.d", "[1, 2]"],
        ["a.e", "{}"],
        ["f", "0.001"],
        ["train.max_steps", "70"],
    ]
    assert run["total_steps"] == 70


def test_a_run_that_is_silent_is_not_said_to_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", metrics="step,loss\n1,2\n", journal=[START])
    assert one_run(run)["state"]["word"] == "running"
    for path in (run.metrics, run.journal):
        os.utime(path, (0, 0))
    state = one_run(run)["state"]
    assert state["word"] == "running, or ended by force"
    assert state["detail"].startswith("nothing was logged for ")


def test_runs_of_the_same_name_have_other_names(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / folder / "run", journal=[START]) for folder in "ab"]
    labels = [run["label"] for run in gather(runs, Limits(), live=False)["runs"]]
    assert labels == [str(run.path) for run in runs]


def test_the_data_of_a_run_that_did_not_change_are_the_same() -> None:
    assert data_of([RECORDED], live=True) == data_of([RECORDED], live=True)


def test_a_config_that_is_too_long_is_cut(tmp_path: Path) -> None:
    keys = "".join(f"  key_{number}: {'v' * 90}\n" for number in range(20))
    run = write_run(tmp_path / "run", config=f"a:\n{keys}")
    found = gather([run], Limits(config_characters=1000), live=False)["runs"][0]["config"]
    assert len(found) == 11
    assert found[-1] == ["…", "more keys than the page has room for"]


def test_whatever_is_wrong_with_one_file_the_others_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("llada_sft.report.gather.answers_of", fail)
    run = one_run(write_run(tmp_path / "run", metrics="step,loss\n1,2\n", journal=[START]))
    assert run["problems"] == ["answers.jsonl: cannot be read: ZeroDivisionError: a defect"]
    assert run["curves"]["last"] == {"loss": [1, "2"]}
