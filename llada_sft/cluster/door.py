"""Can this launcher start a run's own copy of the code, which may be of another version?

A batch script is written by the launcher and runs the copy in the run directory. Both must know the
same door: the number `llada_sft.cluster.DOOR`. The first versions had neither.
"""

import re
import shlex

from llada_sft.cluster import DOOR
from llada_sft.errors import LaunchError
from llada_sft.run_dir import RunDir

_NUMBER = re.compile(r"^DOOR = (\d+)$", re.MULTILINE)
# What the entry points before the door print, when called by a launcher older than the run's code.
OLDER_LAUNCHER = (
    "the run's code is newer than the llada_sft that launched this job:"
    " launch or resume it with the newer version"
)


def require(run: RunDir) -> None:
    """Check that the batch script of this launcher fits the run's copy of the code.

    Raises:
        LaunchError: It does not; one line says which version launched the run, and what to do.
    """
    number = door_of(run)
    if number == DOOR:
        return
    if number is None and not (run.code / "llada_sft").is_dir():
        what = "has no copy of llada_sft in code/"
    else:
        age = "a newer" if (number or 0) > DOOR else "an older"
        what = f"was launched by {age} llada_sft ({launched_by(run)}), which this one cannot start"
    raise LaunchError(
        f"{run.path}: {what}; to resume it with the present code: "
        f" llada-sft resume {shlex.quote(str(run.path))} --update-code"
    )


def door_of(run: RunDir) -> int | None:
    """Return the number of the door that a run's copy of the code has; None if it has no door."""
    try:
        text = (run.code / "llada_sft/cluster/__init__.py").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    match = _NUMBER.search(text)
    return int(match[1]) if match else None


def launched_by(run: RunDir) -> str:
    """Return the version and the commit that a run's copy of the code was made from."""
    # Here, not above: batch scripts load this file, too.
    from llada_sft.cluster.launch.snapshot import code_version

    known = code_version(run)
    parts = [f"version {known['version']}"] if known["version"] else []
    if commit := known["commit"]:
        parts.append(f"commit {commit[:12]}")
    return ", ".join(parts) or "version unknown"
