"""Answers to held-out prompts: a line of JSON for each, and texts in TensorBoard."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llada_sft import atomic
from llada_sft.training.log.tensorboard import TensorBoardLog


class AnswersLog:
    """Appends answers to one file, which every attempt of a run continues; rank 0 only.

    Args:
        path: The file; its folder is created.
        first_step: Lines after this step are dropped: those validations will be made again.
        require_owner: Called before each write; does not return if another process owns the run.
    """

    def __init__(
        self, path: Path, first_step: int, require_owner: Callable[[], None] = lambda: None
    ) -> None:
        self._path, self._first_step, self._ready = path, first_step, False
        self._require_owner = require_owner

    def log(
        self, step: int, answers: Sequence[Mapping[str, Any]], loggers: Iterable[object]
    ) -> None:
        """Log the answers of a step; a full disk is a warning, as for metrics."""
        self._require_owner()
        try:
            if not self._ready:
                self._keep_lines()
            with self._path.open("a", encoding="utf-8") as file:
                for answer in answers:
                    file.write(json.dumps({"step": step, **answer}, ensure_ascii=False) + "\n")
            for logger in loggers:
                if isinstance(logger, TensorBoardLog):
                    for number, answer in enumerate(answers, start=1):
                        logger.log_text(f"answers/{number}", _as_markdown(answer), step)
        except OSError as error:
            reason = error.strerror or str(error)
            print(f"warning: step {step}: answers: not logged: {reason}", file=sys.stderr)

    def _keep_lines(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _lines(self._path) if _step(line) <= self._first_step]
        with atomic.replacing(self._path) as partial:
            partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._ready = True


def _lines(path: Path) -> list[str]:
    """Return the whole lines of the file; half a line is what a crash has left."""
    if not path.is_file():
        return []
    return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]


def _step(line: str) -> float:
    """Return the step of a line; infinity if it is not one of ours."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError):
        return float("inf")


def _as_markdown(answer: Mapping[str, Any]) -> str:
    """Show texts as they are: indented, Markdown takes them for code."""
    parts = []
    for name in ("prompt", "reference", "answer"):
        text = "\n".join(f"    {line}" for line in answer[name].splitlines())
        parts.append(f"**{name}**\n\n{text}\n")
    return "\n".join(parts)
