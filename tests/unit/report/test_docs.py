"""The commands of docs/report.md, as they stand there, on a recorded run."""

import shutil
from pathlib import Path

from tests.doc_commands import call_shell, commands_of
from tests.report_runs import RECORDED
from tests.served_page import read_served_page


def test_the_commands_of_the_page(tmp_path: Path) -> None:
    for name in ("demo", "other"):
        shutil.copytree(RECORDED.path, tmp_path / "runs" / name)
    write, serve, compare = commands_of("docs/report.md")
    assert call_shell(write, tmp_path).endswith("/runs/demo/report.html\n")
    served = read_served_page(serve, tmp_path)
    assert served.startswith("<!DOCTYPE html>")
    assert "<title>" in served
    assert call_shell(compare, tmp_path) == "both.html\n"
    sizes = [(tmp_path / name).stat().st_size for name in ("runs/demo/report.html", "both.html")]
    assert 0 < sizes[0] < sizes[1]
