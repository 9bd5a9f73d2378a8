"""`sweep.json` in the directory of a sweep: its runs, and the values that differ between them.

`launch.py --sweep` writes it, and adds the runs of later launches; `llada-sft status` reads it. A
run is a directory next to it, of the same name.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llada_sft import atomic
from llada_sft.cluster import run_files
from llada_sft.errors import ConfigError
from llada_sft.run_dir import RunDir

NAME = "sweep.json"
_MAX_BYTES = 4 << 20
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=-]*")


@dataclass(frozen=True)
class RunOfSweep:
    """A run of a sweep, and its values by their keys: {"optim.lr": 1e-05}."""

    run: RunDir
    values: dict[str, Any]


def is_sweep(folder: Path) -> bool:
    """Return whether a folder is the directory of a sweep."""
    return (folder / NAME).exists()


def read_sweep(folder: Path) -> list[RunOfSweep]:
    """Return the runs of a sweep, in the order of their first launches; none without a file.

    Raises:
        ConfigError: The file cannot be read, or is not one of ours.
    """
    path = folder / NAME
    try:
        content = json.loads(run_files.read_start(path, _MAX_BYTES))
        return [_run(folder, entry) for entry in content["runs"]]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(f"{path}: is not the list of a sweep's runs") from None


def add_runs(folder: Path, runs: list[RunOfSweep]) -> None:
    """Write the runs of a launch to the file; those of earlier launches stay.

    Raises:
        ConfigError: It cannot be written.
    """
    known = {run.run.path.name: run.values for run in read_sweep(folder)}
    known |= {run.run.path.name: run.values for run in runs}
    entries = [{"name": name, "values": values} for name, values in known.items()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(folder / NAME) as partial:
            atomic.write_synced(partial, json.dumps({"runs": entries}, indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"{folder / NAME}: cannot be written: {error.strerror}") from None


def _run(folder: Path, entry: dict[str, Any]) -> RunOfSweep:
    name, values = entry["name"], entry["values"]
    # Not a path: the runs are in this folder.
    if not isinstance(values, dict) or not _RUN_NAME.fullmatch(name):
        raise ValueError(f"not a run of a sweep: {name!r}")
    return RunOfSweep(RunDir(folder / name), values)
