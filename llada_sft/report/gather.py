"""Run directories -> what the page shows of them, whatever state their files are in.

A file that is missing or damaged is one line on the page; all others are shown.
"""

import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from llada_sft import __version__
from llada_sft.cluster import journal, run_files
from llada_sft.cluster.history import History
from llada_sft.cluster.launch.snapshot import redact
from llada_sft.config.reader import read_values
from llada_sft.errors import LladaSftError
from llada_sft.report.answers import answers_of
from llada_sft.report.bad_rows import quarantined_rows
from llada_sft.report.curves import Row, curves_of, read_rows
from llada_sft.report.limits import Limits
from llada_sft.report.not_read import lines_not_read
from llada_sft.report.timeline import state_of, timeline_of
from llada_sft.run_dir import RunDir

_PASSWORD_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")
_LAUNCH_BYTES = 16 << 10
# Seconds without a new row or entry, after which a run that has not ended may be dead.
_SILENT_S = 600
T = TypeVar("T")
Fields = dict[str, Any]
# A key of the config with dots between its parts, and its value.
Setting = tuple[str, str]


def gather(runs: Sequence[RunDir], limits: Limits, live: bool) -> Fields:
    """Return everything that the page shows.

    Args:
        runs: At least one.
        limits: How much of each.
        live: Whether the page will ask for newer data.
    """
    labels = _labels(runs)
    found = [_of_run(run, label, limits) for run, label in zip(runs, labels, strict=True)]
    # Of a live page the browser knows it: the data of files that did not change are the same.
    written = None if live else datetime.now(UTC).isoformat(timespec="seconds")
    page: Fields = {"version": __version__, "live": live, "written": written, "runs": found}
    hidden: Fields = _without_secrets(page)
    return hidden


def _of_run(run: RunDir, label: str, limits: Limits) -> Fields:
    problems: list[str] = []

    def safely(name: str, read: Callable[[], T], otherwise: T) -> T:
        return _safely(problems, name, read, otherwise)

    no_rows: list[Row] = []
    no_settings: list[Setting] = []
    rows = safely("metrics.csv", lambda: read_rows(run, problems), no_rows)
    history = safely("journal.jsonl", lambda: _history(run, problems), History([]))
    config = safely("config.yaml", lambda: _config(run, limits), no_settings)
    return {
        "label": label,
        "path": str(run.path),
        "state": _state(run, history),
        "total_steps": _total_steps(history, config),
        "curves": safely("metrics.csv", lambda: curves_of(rows, limits), None),
        "bad_rows": safely("quarantine", lambda: quarantined_rows(run, limits, problems), None),
        "timeline": safely("journal.jsonl", lambda: timeline_of(history, limits), None),
        "answers": safely("answers.jsonl", lambda: answers_of(run, limits, problems), None),
        "config": config,
        "launch": _launch(run, problems),
        "problems": list(dict.fromkeys(problems)),
    }


def _safely(problems: list[str], name: str, read: Callable[[], T], otherwise: T) -> T:
    """Return what is read, or note why it cannot be; a missing file is no problem."""
    try:
        return read()
    except FileNotFoundError:
        return otherwise
    except OSError as error:
        problems.append(f"{name}: cannot be read: {error.strerror}")
    except LladaSftError as error:
        problems += str(error).splitlines()
    # The last resort: whatever is wrong with one file, the others are shown.
    except Exception as error:
        problems.append(f"{name}: cannot be read: {type(error).__name__}: {error}")
    return otherwise


def _labels(runs: Sequence[RunDir]) -> list[str]:
    """Return the names of the folders; of those that are called the same, the paths."""
    names = [run.path.name for run in runs]
    return [
        str(run.path) if names.count(name) > 1 else name
        for run, name in zip(runs, names, strict=True)
    ]


def _history(run: RunDir, problems: list[str]) -> History:
    content = run_files.read_end(run.journal)
    entries = journal.parse(content)
    lines = sum(1 for line in content.split(b"\n") if line.strip())
    if lines > len(entries):
        problems.append(lines_not_read("journal.jsonl", lines - len(entries)))
    return History(entries)


def _state(run: RunDir, history: History) -> dict[str, str]:
    """Return the state by the journal; of a run that has not ended, whether it shows life."""
    state = state_of(history)
    if history.open is None:
        return state
    changed = [path.lstat().st_mtime for path in (run.metrics, run.journal) if path.exists()]
    silent_s = time.time() - max(changed, default=0.0)
    if silent_s < _SILENT_S:
        return {**state, "word": "running"}
    return {**state, "detail": f"nothing was logged for {silent_s / 60:,.0f} min"}


def _total_steps(history: History, config: Sequence[Setting]) -> int | None:
    """Return the steps of the whole training: as the run knew at last, or as its config limits."""
    limit = dict(config).get("train.max_steps", "")
    return history.total_steps or (int(limit) if limit.isdecimal() else None)


def _config(run: RunDir, limits: Limits) -> list[Setting]:
    """Return each key of config.yaml with its value as text; it may be of another version.

    Raises:
        LladaSftError: It is not YAML.
        OSError: It cannot be read.
    """
    # Opened without waiting first: a named pipe would block for ever.
    run_files.read_start(run.config, 1)
    found: list[Setting] = []
    room = limits.config_characters
    for key, text in _flat("", read_values(run.config)):
        room -= len(key) + min(len(text), limits.text_characters)
        if room < 0:
            found.append(("…", "more keys than the page has room for"))
            break
        found.append((key, limits.cut(text)))
    return found


def _flat(prefix: str, value: object) -> list[Setting]:
    """Return the keys below a value, in their order, with dots between the names."""
    if isinstance(value, dict) and value:
        return [pair for key, inner in value.items() for pair in _flat(f"{prefix}{key}.", inner)]
    return [(prefix.removesuffix("."), _as_yaml(value))]


def _as_yaml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def _launch(run: RunDir, problems: list[str]) -> list[list[str]]:
    """Return how the run was launched: the command, and the versions of packages."""

    def read(path: Path) -> str:
        return run_files.read_start(path, _LAUNCH_BYTES).decode(errors="replace").strip()

    texts = [
        [path.name, _safely(problems, path.name, partial(read, path), "")]
        for path in (run.command, run.versions)
    ]
    return [pair for pair in texts if pair[1]]


def _without_secrets(value: Any) -> Any:
    """Return a value without secrets of the environment, and without passwords in URLs."""
    if isinstance(value, str):
        return _PASSWORD_IN_URL.sub("***@", redact(value))
    if isinstance(value, dict):
        return {key: _without_secrets(inner) for key, inner in value.items()}
    is_list = isinstance(value, list | tuple)
    return [_without_secrets(inner) for inner in value] if is_list else value
