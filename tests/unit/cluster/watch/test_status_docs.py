"""The commands of docs/status.md, as they stand there, on a recorded run that is over."""

import shutil
from pathlib import Path

from llada_sft.run_dir import RunDir
from tests.doc_commands import call_shell, commands_of
from tests.report_runs import RECORDED


def test_the_commands_of_the_page(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs/mine")
    shutil.copytree(RECORDED.path, run.path)
    run.rank_log(0).parent.mkdir(exist_ok=True)
    run.rank_log(0).write_text("step 160/160  loss 1.5\n")
    every, one, logs = commands_of("docs/status.md")
    assert call_shell(every, tmp_path).splitlines()[1].split()[:3] == [
        "mine",
        "finished",
        "160/160",
    ]
    assert "finished" in call_shell(one, tmp_path)
    # It ends, because the run is over.
    assert "step 160/160  loss 1.5\n" in call_shell(logs, tmp_path)
