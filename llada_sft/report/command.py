"""`llada-sft report`: writes the page, or serves it."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from llada_sft import atomic
from llada_sft.errors import ConfigError
from llada_sft.report.html import data_of, page_of
from llada_sft.report.serve import ReportServer, serve_until_interrupted
from llada_sft.run_dir import RunDir

# More curves in one chart cannot be distinguished.
MOST_RUNS = 16


def report_runs(runs: Sequence[RunDir], out: Path | None, port: int | None) -> None:
    """Write the page of some runs; or serve it, if there is a port.

    Raises:
        ConfigError: There are too many runs, or the file cannot be written.
        LaunchError: The port cannot be used.
    """
    if len(runs) > MOST_RUNS:
        raise ConfigError(f"report: at most {MOST_RUNS} runs in one page, got {len(runs)}")
    if port is not None:
        page, data = partial(page_of, runs, True), partial(data_of, runs, True)
        serve_until_interrupted(ReportServer(port, page, data))
        return
    print(write_report(runs, out))


def write_report(runs: Sequence[RunDir], out: Path | None = None) -> Path:
    """Write the page into a file, replaced at once, and return where it is.

    Raises:
        ConfigError: The file cannot be written.
    """
    path = out or (runs[0].report if len(runs) == 1 else Path("report.html"))
    if path.is_dir():
        raise ConfigError(f"--out {path}: is a folder; name a file in it")
    if path.exists() and not path.is_file():
        # Root could replace even /dev/stdout.
        raise ConfigError(f"--out {path}: is not a regular file; name a file")
    try:
        with atomic.replacing(path) as partial_file:
            partial_file.write_text(page_of(runs), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written: {error.strerror}; name another file with --out"
        ) from None
    return path
