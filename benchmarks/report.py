"""What all benchmarks print and write: tables, and where and with what they were measured."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def surroundings(packages: Sequence[str]) -> dict[str, Any]:
    """Return where and with what this was measured; a package that is not there has no version.

    A copy without git's history takes the commit from the variable BENCHMARK_COMMIT.
    """
    git = ["git", "describe", "--always", "--dirty"]
    commit = (
        os.environ.get("BENCHMARK_COMMIT")
        or subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    )
    return {
        "commit": commit,
        "machine": f"{platform.system()} {platform.machine()}, {_processor()}",
        "gpu": _gpu(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _gpu() -> str | None:
    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows that all have the same columns."""

    def shown(value: Any) -> str:
        return f"{value:,.3f}" if isinstance(value, float) else str(value)

    table = [list(rows[0]), *([shown(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    print()


def write(out: Path, measured: dict[str, Any]) -> None:
    """Write everything that was measured as one JSON file."""
    out.write_text(json.dumps(measured, indent=1) + "\n")
    print(f"written to {out}")
