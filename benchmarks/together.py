"""Calls a function in several processes at the same moment: what ranks get of one disk together."""

import multiprocessing
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# A turn of one rank: a name of what to do, and its seconds for each of its parts.
Turn = Callable[[str], dict[str, float]]


class Ranks:
    """Processes that do the same things at the same time.

    Args:
        number: How many.
        make: Called in each process with its number; returns what makes a turn.
        args: Further arguments of `make`.
    """

    def __init__(self, number: int, make: Callable[..., Turn], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        for rank in range(number):
            ours, theirs = context.Pipe()
            context.Process(target=_serve, args=(theirs, make, rank, args), daemon=True).start()
            self._pipes.append(ours)
        for pipe in self._pipes:
            pipe.recv()

    def turn(self, name: str) -> dict[str, float]:
        """Let all do it; return the seconds of the slowest rank for each part."""
        for pipe in self._pipes:
            pipe.send(name)
        times = [pipe.recv() for pipe in self._pipes]
        return {part: max(of_rank[part] for of_rank in times) for part in times[0]}


def _serve(pipe: Connection, make: Callable[..., Turn], rank: int, args: tuple[Any, ...]) -> None:
    turn = make(rank, *args)
    pipe.send(None)
    with suppress(EOFError):
        while True:
            pipe.send(turn(pipe.recv()))


def dd(*operands: str) -> float:
    """Run dd in pieces of 16 MiB; return its seconds."""
    began = time.perf_counter()
    subprocess.run(["dd", *operands, "bs=16M", "status=none"], check=True)
    return time.perf_counter() - began


def forget(path: Path) -> None:
    """Take a file out of the page cache."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
