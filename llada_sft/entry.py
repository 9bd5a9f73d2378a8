"""How both entry points end: a problem that the user can fix is a message, not a traceback."""

import atexit
import gc
import io
import os
import sys
from collections.abc import Callable

from llada_sft.errors import EXIT_CODE, LladaSftError

INTERRUPTED = 130


def exit_code(command: Callable[[], int]) -> int:
    """Run a command and return its exit code; 2 after printing a `LladaSftError`."""
    _exit_without_a_collection()
    # A path that is not text, or a terminal without UTF-8, must not end the command.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return command()
    except LladaSftError as error:
        print(error, file=sys.stderr)
        return EXIT_CODE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) is gone; Python would report it again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _exit_without_a_collection() -> None:
    """Do not let Python look for garbage at its exit in all that the libraries have imported.

    It took a sixth of the CPU time of `launch.py --dry-run` (benchmarks/login_node.py).
    """
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
