"""Run directories for the tests of the report: a recorded one, and some that are written here."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llada_sft.run_dir import RunDir

# Of tests/golden/record_report_run.py: two attempts, the first one killed.
RECORDED = RunDir(Path(__file__).parent / "golden/report_run")
START = {"time": "2026-11-28T10:00:00+00:00", "event": "started", "attempt": 1, "nodes": "node1"}
BAD_ROW = {"file": "a.jsonl", "line": 3, "byte": 9, "reason": "not_json", "message": "m"}
ANSWER = {"set": "", "row": "a:1", "prompt": "p", "reference": "ab", "answer": "ab"}


def write_run(
    folder: Path,
    metrics: str | None = None,
    journal: Sequence[Mapping[str, Any]] | None = None,
    answers: Sequence[Mapping[str, Any]] | None = None,
    bad_rows: Sequence[Mapping[str, Any]] | None = None,
    config: str | None = None,
) -> RunDir:
    """Write those files of a run that are given."""
    run = RunDir(folder)
    run.logs.mkdir(parents=True)
    run.quarantine.mkdir()
    for path, text in (
        (run.metrics, metrics),
        (run.journal, _lines(journal)),
        (run.answers, _lines(answers)),
        (run.rank_quarantine(0), _lines(bad_rows)),
        (run.config, config),
    ):
        if text is not None:
            path.write_text(text, encoding="utf-8")
    return run


def _lines(fields: Sequence[Mapping[str, Any]] | None) -> str | None:
    return None if fields is None else "".join(json.dumps(each) + "\n" for each in fields)


def hostile_run(folder: Path) -> RunDir:
    """Write a run whose every text tries to be something else than a text."""
    script = "</script><script>window.attacked = 1</script><img src=x onerror='window.attacked=2'>"
    texts = f"{script}\u202edesrever\u2028\0 {{{{data}}}} " + "long" * 500
    failed = {"event": "failed", "attempt": 1, "error": texts, "node": script, "traceback": script}
    tokens = [[texts, 1]]
    return write_run(
        folder,
        metrics=f"step,loss,<script>window.attacked=3</script>,share_{script}\n10,0.5,1,0.5\n",
        journal=[
            {**START, "nodes": texts},
            {**failed, "step": 10},
            {"event": script, "attempt": 1, "time": script},
            {"event": "ended", "attempt": 1, "cause": script, "detail": texts, "time": script},
        ],
        answers=[
            {**dict.fromkeys(ANSWER, texts), "step": 10, "tokens": tokens, "num_passes": 1},
            {**dict.fromkeys(ANSWER, script), "step": 10},
        ],
        bad_rows=[{**BAD_ROW, "file": script, "reason": script, "message": texts}],
        # A config with a NUL is refused.
        config=f"{json.dumps(script)}: {{key: {json.dumps(texts.replace(chr(0), ''))}}}\n",
    )
