"""How both entry points end: a problem that the user can fix is a message, not a traceback."""

import atexit
import gc
import io
import os
import sys
from collections.abc import Callable
from typing import TextIO

from llada_sft.errors import EXIT_CODE, LladaSftError

INTERRUPTED = 130


def exit_code(command: Callable[[], int]) -> int:
    """Run a command and return its exit code; 2 after printing a `LladaSftError`."""
    _exit_without_a_collection()
    # A path that is not text, or a terminal without UTF-8, must not end the command.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = command()
    except LladaSftError as error:
        print_or_drop(str(error), sys.stderr)
        code = EXIT_CODE
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        code = 1
    _drop_what_nobody_reads()
    return code


def print_or_drop(text: str, file: TextIO | None = None) -> bool:
    """Print a text, or drop it where its reader (`| head`) is gone; return whether it was printed.

    For commands that do something besides printing: a closed pipe does not stop them.

    Args:
        text: The text.
        file: None means stdout.
    """
    try:
        print(text, file=file or sys.stdout, flush=True)
    except BrokenPipeError:
        return False
    return True


def _drop_what_nobody_reads() -> None:
    """Empty the buffers whose reader is gone: Python would report it when it flushes at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _exit_without_a_collection() -> None:
    """Do not let Python look for garbage at its exit in all that the libraries have imported.

    It took a sixth of the CPU time of `launch.py --dry-run` (benchmarks/login_node.py).
    """
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
