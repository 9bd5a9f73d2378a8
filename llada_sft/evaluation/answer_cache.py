"""What was answered already: an evaluation that was killed continues with the rest.

lm-evaluation-harness writes results at its very end. Here each answer is on the disk soon after it
was computed, under the digest of what was asked. Each process appends to a file of its own: none
waits for another, and half a line at the end of a file is what a killed process left. A start reads
the files of all earlier ones, whatever their number of ranks was.

The folder's name has a digest of all that an answer depends on (`folder_name`): answers of another
model, of other settings or versions are never found in it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from llada_sft.atomic import sync_file
from llada_sft.errors import ConfigError
from llada_sft.keys import digest

Entry = dict[str, Any]


def folder_name(task: str, depends_on: Mapping[str, Any]) -> str:
    """Return the name of the cache of a task.

    Args:
        task: Its name.
        depends_on: Values that JSON can hold: weights, settings, template, versions.
    """
    content = json.dumps({"task": task, **depends_on}, sort_keys=True)
    return f"{task}_{digest(content.encode(), 8).hex()}"


def request_key(*asked: Any) -> str:
    """Return the key of a request: a digest of what is asked, whoever asks."""
    return digest(json.dumps(asked, sort_keys=True).encode(), 16).hex()


@contextmanager
def writing_results(folder: Path) -> Iterator[None]:
    """Say in a line why a folder below `--results` cannot be written.

    Raises:
        ConfigError: It cannot.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"--results: {error.filename or folder}: cannot be written: {error.strerror};"
            " free room there, or name another folder"
        ) from None


class AnswerCache:
    """The entries of a folder, by their key.

    Args:
        folder: It is made when the first entry is added; None keeps all in memory.
        rank, world_size: Of this process: part of the name of its file.
    """

    def __init__(self, folder: Path | None, rank: int = 0, world_size: int = 1) -> None:
        self._folder, self._prefix = folder, f"rank_{rank}_of_{world_size}"
        self._file: IO[str] | None = None
        self._entries: dict[str, Entry] = {}
        for path in sorted(folder.glob("*.jsonl")) if folder else ():
            self._read(path)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __getitem__(self, key: str) -> Entry:
        return self._entries[key]

    def add(self, entries: Iterable[Entry]) -> None:
        """Keep entries, each with its `key`, and wait until they are on the disk.

        Raises:
            ConfigError: The folder cannot be written.
        """
        new = list(entries)
        self._entries |= {entry["key"]: entry for entry in new}
        if self._folder is None or not new:
            return
        with writing_results(self._folder):
            if self._file is None:
                self._file = self._new_file(self._folder)
            self._file.write("".join(json.dumps(entry) + "\n" for entry in new))
            sync_file(self._file)

    def close(self) -> None:
        """Close this process's file."""
        if self._file is not None:
            self._file.close()

    def _new_file(self, folder: Path) -> IO[str]:
        """Make the first file of this rank that no other process has."""
        folder.mkdir(parents=True, exist_ok=True)
        number = 0
        while True:
            try:
                return (folder / f"{self._prefix}_{number}.jsonl").open("x", encoding="utf-8")
            except FileExistsError:
                number += 1

    def _read(self, path: Path) -> None:
        # Lines end with a newline alone: a text may have other separators.
        *lines, _ = path.read_bytes().split(b"\n")
        for line in lines:
            try:
                entry = json.loads(line)
                self._entries[entry["key"]] = entry
            except (ValueError, KeyError, TypeError):
                # A file system may lose a part of what it had not written when the power failed.
                continue
