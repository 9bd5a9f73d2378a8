"""The line of a user's mistake: once on the terminal, and in the rank's log.

The launcher of --local and --here copies the output of rank 0 to the terminal. It also prints there
why a run failed, whichever rank it was: rank 0 then writes the line to its log alone.
"""

import os
import sys
from pathlib import Path

# Set for the rank whose output the launcher shows.
SHOWN = "LLADA_SFT_SHOWN"


def say_mistake(error: Exception, log: Path) -> None:
    """Print an error, or write it to the rank's log if the launcher is going to print it."""
    # With --here all ranks have the variable.
    if os.environ.get(SHOWN) and os.environ.get("SLURM_PROCID", "0") == "0":
        try:
            with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{error}\n")
        except OSError:
            # Twice is better than not at all.
            pass
        else:
            return
    print(error, file=sys.stderr, flush=True)
