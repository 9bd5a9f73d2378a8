"""The answers of a file, kept as they come and put together at the end.

    OUT.partial/
      request.json    what is asked of which model, and how; another request is refused
      rank_N.jsonl    the answers of a process, in the order in which they came
    OUT               all of them, in the order of the questions; the folder is removed then

A process that was killed has lost the batch that it was at. The next one reads what is there, with
any number of ranks: question number i is rank i mod N's.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llada_sft.atomic import partial_of, sync_file, write_synced
from llada_sft.errors import ConfigError, DataError

_POLL_S = 1.0
_SHOWN = 60
# Records may have them; as escapes they are JSON.
_LONE_SURROGATES = "backslashreplace"


def require_new(out: Path) -> None:
    """Refuse a file that is there already, or that cannot be made.

    Raises:
        ConfigError: It is there, or a file is where its folder would be.
    """
    if out.exists():
        raise ConfigError(f"--out: {out} is there already: remove it, or name another")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise ConfigError(f"--out: {above} is not a folder; name another")


class AnswersFile:
    """The file that is to be written, and the folder of what is known already."""

    def __init__(self, out: Path) -> None:
        self._out, self._folder = out, partial_of(out)

    def begin(self, request: Mapping[str, Any]) -> None:
        """Make the folder, or find that it is of the same request.

        Args:
            request: JSON values, all that the answers depend on.

        Raises:
            ConfigError: It is that of another request, or cannot be made.
        """
        path = self._folder / "request.json"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                # Ranks that start together write the same.
                own = path.with_name(f"request.{time.time_ns()}")
                write_synced(own, json.dumps(request, indent=1))
                own.replace(path)
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--out: {self._folder}: {error}; remove it to begin afresh"
            ) from None
        for name in sorted({*known, *request}):
            if known.get(name) != request.get(name):
                was, now = (json.dumps(one.get(name))[:_SHOWN] for one in (known, request))
                raise ConfigError(
                    f"--out: {self._folder} has answers of another request: {name} was {was}, is"
                    f" {now}; remove it to begin afresh, or name another --out"
                )

    def known(self) -> dict[int, dict[str, Any]]:
        """Return the answers that are there, by the number of their question."""
        return {row["number"]: row for path in self._parts() for row in _whole_rows(path)}

    def writer(self, rank: int) -> Callable[[Sequence[dict[str, Any]]], None]:
        """Return what adds answers of a rank, each with its `number`; it raises a DataError."""
        path = self._folder / f"rank_{rank}.jsonl"

        def add(rows: Sequence[dict[str, Any]]) -> None:
            if not rows:
                return
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            try:
                _append(path, "\n".join(lines) + "\n")
            except OSError as error:
                raise DataError(
                    f"{path}: cannot be written: {error.strerror}; the same command continues here"
                ) from None

        return add

    def wait_for(self, total: int) -> dict[int, dict[str, Any]]:
        """Wait until all ranks have answered, and return all answers by their numbers."""
        while len(known := self.known()) < total:
            time.sleep(_POLL_S)
        return known

    def finish(self, known: Mapping[int, dict[str, Any]]) -> None:
        """Write the file in one piece and remove the folder.

        Raises:
            DataError: The disk is full, or the like.
        """
        rows = (
            {name: value for name, value in known[number].items() if name != "number"}
            for number in sorted(known)
        )
        text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        try:
            whole = self._folder / "answers.jsonl"
            with whole.open("w", encoding="utf-8", errors=_LONE_SURROGATES) as file:
                file.write(text)
                sync_file(file)
            whole.replace(self._out)
        except OSError as error:
            raise DataError(f"{self._out}: cannot be written: {error.strerror}") from None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob("rank_*.jsonl"))


def _append(path: Path, text: str) -> None:
    with path.open("ab") as file:
        # What a killed process began to write ends here: it is no row.
        torn = file.tell() > 0 and not _ends_line(path)
        file.write((("\n" if torn else "") + text).encode(errors=_LONE_SURROGATES))
        sync_file(file)


def _whole_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a part; one that was cut by a kill is none."""
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("number"), int):
            yield row


def _ends_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
