"""The table of a sweep, and the file that names its runs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llada_sft.cluster import journal
from llada_sft.cluster.sweep.sweep_file import RunOfSweep, add_runs, is_sweep, read_sweep
from llada_sft.cluster.watch.sweep_table import table_lines
from llada_sft.errors import ConfigError
from llada_sft.run_dir import RunDir

FakeTool = Callable[[str, str], None]
METRICS = "step,loss,lr,validation_loss\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sweep of four runs: of one nothing is there, and one was never started."""
    folder = tmp_path / "first"
    runs = [RunOfSweep(RunDir(folder / f"seed={n}"), {"run.seed": n}) for n in range(4)]
    add_runs(folder, runs)
    for number, run in enumerate(runs[:3]):
        run.run.logs.mkdir(parents=True)
        job: journal.Entry = {"event": "launched", "job_id": f"{40 + number}"}
        journal.append(run.run.journal, job)
    for number, loss in ((0, 2.5), (1, 1.25)):
        row = f"{10 + number},{loss},1e-5,\n"
        runs[number].run.metrics.write_text(f"{METRICS}{row}20,,,{loss + 1}\n30,torn")
    return folder


def test_the_best_run_is_first(folder: Path, fake_tool: FakeTool) -> None:
    jobs = "echo '40|RUNNING|1|node1|None'; echo '41|COMPLETED|1||None'"
    fake_tool("squeue", f'echo "$@" >> {folder}/asked; {jobs}')
    started: journal.Entry = {"event": "started", "attempt": 1, "job_id": "41"}
    journal.append(folder / "seed=1/journal.jsonl", started)
    ended: journal.Entry = {"event": "ended", "attempt": 1, "cause": "finished"}
    journal.append(folder / "seed=1/journal.jsonl", ended)
    assert table_lines(folder) == [
        "run     state                  step  validation_loss  loss  run.seed",
        "seed=1  finished               20    2.25             1.25  1",
        "seed=0  RUNNING                20    3.5              2.5   0",
        "seed=2  ended before it began  0                            2",
        "seed=3  no directory           0                            3",
    ]
    # SLURM is asked once.
    (asked,) = (folder / "asked").read_text().splitlines()
    assert " --jobs=40,41,42 " in asked


def test_slurm_does_not_answer(folder: Path, fake_tool: FakeTool) -> None:
    fake_tool("squeue", "echo no controller >&2; exit 1")
    assert sum("unknown (SLURM does not answer)" in line for line in table_lines(folder)) == 3
    fake_tool("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert not any("unknown" in line for line in table_lines(folder))


def test_runs_of_a_later_launch_are_added(folder: Path) -> None:
    add_runs(folder, [RunOfSweep(RunDir(folder / "lr=1"), {"optim.lr": 1.0})])
    assert is_sweep(folder)
    names = [run.run.path.name for run in read_sweep(folder)]
    assert names == ["seed=0", "seed=1", "seed=2", "seed=3", "lr=1"]


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"runs": 3}', '{"runs": [{"name": "a"}]}']
    + [
        json.dumps({"runs": [{"name": name, "values": {}}]})
        for name in ("..", "../a", "/tmp", ".", "a/b", 7)
    ]
    + ["[" * 100_000],
)
def test_a_file_that_is_not_a_list_of_runs(folder: Path, content: str) -> None:
    file = folder / "sweep.json"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_sweep(folder)
    assert str(caught.value) == f"{file}: is not the list of a sweep's runs"


def test_a_hostile_value_is_safe_to_print(folder: Path, fake_tool: FakeTool) -> None:
    fake_tool("squeue", "exit 0")
    run = RunOfSweep(RunDir(folder / "seed=9"), {"data.train": "\x1b[2J"})
    add_runs(folder, [run])
    assert not any("\x1b" in line for line in table_lines(folder))
