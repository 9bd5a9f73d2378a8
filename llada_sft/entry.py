"""The arguments of commands that are paths, and how commands end.

A problem that the user can fix is a message, not a traceback.
"""

import argparse
import atexit
import errno
import gc
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from llada_sft.errors import EXIT_CODE, LladaSftError

INTERRUPTED = 130
# What a write says to which the disk, or a quota, has no room. Of a file that a command writes, the
# command says it; what is left is the standard output.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def not_empty(word: str) -> str:
    """Return an argument that is not empty: as a path, that would be the working folder.

    Raises:
        argparse.ArgumentTypeError: It is, as a variable of the shell that is not set.
    """
    if not word:
        raise argparse.ArgumentTypeError("must not be empty")
    return word


def path_argument(word: str) -> Path:
    """Return an argument that must be a path of this machine.

    Raises:
        argparse.ArgumentTypeError: It is empty or a URL, which as a path would be a folder `s3:`.
    """
    if "://" in word:
        raise argparse.ArgumentTypeError(f"must be a path of this machine, not a URL, got {word!r}")
    return Path(not_empty(word))


def exit_code(command: Callable[[], int]) -> int:
    """Run a command and return its exit code; 2 after printing a `LladaSftError`."""
    _exit_without_a_collection()
    _open_what_is_closed()
    # A path that is not text, or a terminal without UTF-8, must not end the command.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = command()
        # Python would do it after this, and say with a traceback of its own that it cannot.
        sys.stdout.flush()
    except LladaSftError as error:
        print_or_drop(str(error), sys.stderr)
        code = EXIT_CODE
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) is gone.
        code = 1
    except OSError as error:
        if error.filename is not None or error.errno not in _NO_ROOM:
            raise
        _empty(sys.stdout)
        print_or_drop(f"the output cannot be written: {error.strerror}", sys.stderr)
        code = EXIT_CODE
    _drop_what_cannot_be_written()
    return code


def print_or_drop(text: str, file: TextIO | None = None) -> bool:
    """Print a text, or drop it where its reader (`| head`) is gone; return whether it was printed.

    For commands that do something besides printing: a closed pipe does not stop them.

    Args:
        text: The text.
        file: None means stdout.
    """
    stream = file or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        _empty(stream)
        return False
    return True


def _open_what_is_closed() -> None:
    """Let output go nowhere that the shell has closed (`>&-`).

    Otherwise the next file that is opened would be the standard output of this process and of those
    that it starts.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # It gets the lowest number that is free: this one.
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)


def _drop_what_cannot_be_written() -> None:
    """Empty the buffers that nobody reads: Python would report it when it flushes at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _empty(stream)


def _empty(stream: TextIO) -> None:
    """Let what is still to be written go nowhere: it would fail again."""
    number = stream.fileno()
    kept, nowhere = os.dup(number), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    stream.flush()
    os.dup2(kept, number)
    os.close(kept)
    os.close(nowhere)


def _exit_without_a_collection() -> None:
    """Do not let Python look for garbage at its exit in all that the libraries have imported.

    It took a sixth of the CPU time of `launch.py --dry-run` (benchmarks/login_node.py).
    """
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
