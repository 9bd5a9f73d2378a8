"""`llada-sft status` without a run, as a table and as JSON; and runs by their names."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from llada_sft import cli
from llada_sft.cluster import journal
from llada_sft.cluster.causes import Cause
from llada_sft.cluster.journal import Entry
from llada_sft.cluster.rank.phases import RankPhase, record_phase
from llada_sft.cluster.watch import all_runs, json_status
from llada_sft.cluster.watch.find_run import find_run, list_runs
from llada_sft.errors import ConfigError
from llada_sft.run_dir import RunDir
from tests.unit.cluster.watch.test_hostile_runs import KINDS, READ_BY_STATUS, remove

FakeTool = Callable[[str, str], None]
METRICS = "step,loss,lr,tokens,tokens_per_s\n10,4.5,1e-3,1000,500\n20,2.25,1e-3,1000,500\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def make_run(root: Path, name: str, *entries: dict[str, object], job: str | None = None) -> RunDir:
    """Make a run directory with a journal and metrics."""
    run = RunDir(root / name)
    run.logs.mkdir(parents=True)
    (run.checkpoints / "step_20").mkdir(parents=True)
    run.config.write_text(f"data: {{hook: {run.hook}}}\n")
    run.metrics.write_text(METRICS)
    for entry in entries:
        of_job = {} if job is None else {"job_id": job}
        journal.append(run.journal, cast(Entry, {**entry, **of_job}))
    return run


def rows(root: Path) -> dict[str, list[str]]:
    """Return the cells of each run that are not empty, by its name, in the table's order."""
    _, *lines = all_runs.as_table(root).splitlines()
    cells = ([cell for cell in line.split("  ") if cell] for line in lines)
    return {name.strip(): [cell.strip() for cell in rest] for name, *rest in cells}


LAUNCHED: dict[str, object] = {"event": "launched"}
STARTED: dict[str, object] = {"event": "started", "attempt": 1, "nodes": "node[1-2]"}
SAVED: dict[str, object] = {"event": "checkpoint", "step": 20, "total_steps": 120}


def ended(cause: str, **more: object) -> dict[str, object]:
    return {"event": "ended", "cause": cause, **more}


def test_all_runs_with_one_question(root: Path, fake_tool: FakeTool, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    fake_tool(
        "squeue",
        f'echo "$@" >> {asked}\n'
        "echo '41|PENDING|N/A||QOSMaxJobsPerUserLimit'\n"
        "echo '42|RUNNING|1795828000|node[1-2]|None'\n"
        "echo '43|COMPLETED|1795828000|node3|None'",
    )
    make_run(root, "waits", LAUNCHED, job="41")
    runs = make_run(root, "trains", LAUNCHED, STARTED, SAVED, job="42")
    make_run(root, "sweep/lr_1", LAUNCHED, STARTED, ended("hang", detail="rank 3"), job="43")
    make_run(root, "forgotten", LAUNCHED, STARTED, job="44")
    make_run(root, "done", LAUNCHED, STARTED, SAVED, ended("finished", step=120), job="45")
    make_run(root, "prepared")
    record_phase(runs, RankPhase(0, 1, "training", since=time.time()))
    found = rows(root)
    assert set(list(found)[:2]) == {"trains", "waits"}
    assert found["trains"] == [
        *("running", "20/120", "2.25", "500", "~0:00:20", "node[1-2]", "20 (0 s ago)")
    ]
    assert found["waits"][0] == "pending"
    assert found["waits"][-1].startswith("QOSMaxJobsPerUserLimit: you run as many jobs")
    assert found["sweep/lr_1"][0] == "failed"
    assert found["sweep/lr_1"][-1] == "hang (rank 3)"
    assert found["forgotten"][0] == "lost"
    assert (found["done"][:2], found["done"][-1]) == (["finished", "120/120"], "finished")
    assert found["prepared"][0] == "prepared"
    (question,) = asked.read_text().splitlines()
    # A run whose journal says that it is over is not asked for.
    assert "--jobs=41,42,43,44 " in question


def test_what_starts_says_what_it_does(root: Path, fake_tool: FakeTool) -> None:
    fake_tool("squeue", "echo '42|RUNNING|1795828000|node1|None'")
    run = make_run(root, "a", LAUNCHED, {**STARTED, "world_size": 2}, job="42")
    record_phase(run, RankPhase(0, 1, "ranks", since=time.time()))
    assert rows(root)["a"][0] == "starting"
    assert rows(root)["a"][-1] == "waiting for rank 1 to start"


@pytest.mark.parametrize(
    ("entries", "state"),
    [
        ([ended("cancelled")], "cancelled"),
        ([ended("told to stop")], "stopped"),
        ([ended("exception")], "failed"),
        ([ended("killed"), {"event": "given_up", "detail": "3 failures"}], "given up"),
        ([ended("a word of another version")], "failed"),
    ],
)
def test_local_runs_that_ended(root: Path, entries: list[dict[str, object]], state: str) -> None:
    make_run(root, "a", LAUNCHED, STARTED, *entries)
    assert rows(root)["a"][0] == state


def test_a_stopped_job_that_is_queued_again(root: Path, fake_tool: FakeTool) -> None:
    fake_tool("squeue", "echo '42|PENDING|1795828000||BeginTime'")
    make_run(root, "a", LAUNCHED, STARTED, ended(Cause.PREEMPTED), job="42")
    assert rows(root)["a"][0] == "pending"


@pytest.mark.parametrize(
    ("script", "state"),
    [
        ("echo down >&2; exit 1", "unknown"),
        ("echo slurm_load_jobs error: Invalid job id specified >&2; exit 1", "lost"),
        ("echo nonsense; echo '42|RUNNING'", "lost"),
    ],
)
def test_when_slurm_does_not_know(root: Path, fake_tool: FakeTool, script: str, state: str) -> None:
    fake_tool("squeue", script)
    make_run(root, "a", LAUNCHED, STARTED, job="42")
    make_run(root, "b", LAUNCHED, STARTED, ended("finished"), job="41")
    *lines, last = all_runs.as_table(root).splitlines()
    assert f"a    {state}" in "\n".join([*lines, last])
    assert last.startswith("SLURM does not answer: squeue") == (state == "unknown")


def test_the_job_of_the_original_is_not_that_of_the_copy(root: Path, fake_tool: FakeTool) -> None:
    fake_tool("squeue", "echo '42|RUNNING|1795828000|node1|None'")
    run = make_run(root, "a", LAUNCHED, STARTED, job="42")
    shutil.copytree(run.path, root / "b")
    found = json.loads(json_status.all_as_json(root))["runs"]
    assert {run["name"]: run["job_id"] for run in found} == {"a": "42", "b": None}


def test_a_folder_without_runs(root: Path) -> None:
    assert all_runs.as_table(root) == (
        f"{root}: no run here; another folder:  llada-sft status --root DIR"
    )
    with pytest.raises(ConfigError, match=r"^none: no such folder; set --root to the run\.root"):
        all_runs.as_table(Path("none"))
    (root / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be read: Not a directory"):
        all_runs.as_table(root / "file")


@pytest.mark.slow
@pytest.mark.parametrize("file", READ_BY_STATUS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_run_is_a_line(root: Path, fake_tool: FakeTool, file: str, kind: str) -> None:
    fake_tool("squeue", "echo '42|RUNNING|1795828000|node1|None'")
    make_run(root, "good", LAUNCHED, STARTED, ended("finished"))
    run = make_run(root, "bad", LAUNCHED, STARTED, SAVED, job="42")
    (run.path / file).parent.mkdir(exist_ok=True)
    remove(run.path / file)
    KINDS[kind](run.path / file)
    table = all_runs.as_table(root)
    assert "\x1b" not in table
    assert {"good", "bad"} <= {line.split(" ")[0] for line in table.splitlines()}
    both = json.loads(json_status.all_as_json(root), parse_constant=pytest.fail)["runs"]
    assert sorted(run["name"] for run in both) == ["bad", "good"]
    json.loads(json_status.one_as_json(run), parse_constant=pytest.fail)


# The documented keys: removing or renaming one breaks somebody's script.
KEYS = {
    *("name", "directory", "state", "job_id", "job_state", "pending_reason", "pending_words"),
    *("estimated_start", "attempt", "nodes", "world_size", "doing", "step", "total_steps"),
    *("seconds_left", "loss", "lr", "tokens_per_s", "mfu", "checkpoint_step", "checkpoint_time"),
    *("cause", "why", "given_up", "last_time", "problems"),
}
KEYS_OF_AN_ATTEMPT = {
    *("attempt", "job_id", "restarts", "nodes", "world_size", "started", "ended", "first_step"),
    *("last_step", "cause", "detail", "error", "exit_code"),
}


def test_json_of_a_pending_job(root: Path, fake_tool: FakeTool) -> None:
    fake_tool("scontrol", "echo JobId=41 JobState=PENDING Reason=Priority StartTime=1795828000")
    fake_tool("squeue", "echo '41|PENDING|1795828000||Priority'")
    run = make_run(root, "a", LAUNCHED, STARTED, SAVED, ended("time limit", step=30), job="41")
    one: dict[str, Any] = json.loads(json_status.one_as_json(run))
    every: dict[str, Any] = json.loads(json_status.all_as_json(root))
    assert every.keys() == {"version", "root", "slurm_problem", "runs"}
    assert every["runs"][0].keys() == KEYS
    assert every["runs"] == [{key: one[key] for key in KEYS}]
    extra = {"version", "slurm_problem", "attempts", "excluded_nodes", "failures"}
    assert one.keys() == KEYS | extra
    assert one["attempts"][0].keys() == KEYS_OF_AN_ATTEMPT
    shown = ("version", "state", "job_state", "pending_reason", "estimated_start", "step", "loss")
    assert [one[key] for key in shown] == [
        *(1, "pending", "PENDING", "Priority", "2026-11-28T01:06:40+00:00", 30, 2.25)
    ]
    assert (one["nodes"], one["cause"], one["total_steps"]) == ("node[1-2]", "time limit", 120)


def test_every_key_is_documented() -> None:
    text = (Path(__file__).parents[4] / "docs/status.md").read_text()
    for key in KEYS | KEYS_OF_AN_ATTEMPT | {"excluded_nodes", "failures", "slurm_problem", "root"}:
        assert f"`{key}`" in text, key


def test_a_run_by_its_name(root: Path) -> None:
    run = make_run(root, "first")
    make_run(root, "sweep/lr_1")
    assert find_run("first") == find_run("runs/first") == find_run(str(run.path)) == run
    assert find_run("sweep/lr_1").path == root / "sweep/lr_1"
    # The path wins.
    make_run(root.parent, "first")
    assert find_run("first").path == root.parent / "first"
    assert find_run("lr_1", Path("runs/sweep")).path == root / "sweep/lr_1"


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("frist", "no such run: neither a path, nor a name in runs; did you mean 'first'?"),
        ("runs/x", "no such run: neither a path, nor a name in runs"),
        ("zzzzzz", "no such run: neither a path, nor a name in runs"),
        ("empty", "not a run directory: it has no config.yaml"),
    ],
)
def test_no_such_run(root: Path, word: str, line: str) -> None:
    make_run(root, "first")
    (root.parent / "empty").mkdir()
    with pytest.raises(ConfigError) as caught:
        find_run(word)
    assert str(caught.value) == f"{word}: {line}"


def test_a_name_where_there_is_no_folder_of_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^a: no such run: neither a path, nor a name in runs$"):
        find_run("a")
    with pytest.raises(ConfigError) as caught:
        list_runs(Path("rnus"))
    line = "rnus: no such folder; set --root to the run.root of your runs"
    assert str(caught.value) == line


@pytest.mark.parametrize("verb", ["status", "logs", "cancel", "resume", "export"])
def test_all_commands_take_a_name(
    root: Path,
    verb: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_run(root, "first")
    more = ["out"] if verb == "export" else []
    monkeypatch.setattr(sys, "argv", ["llada-sft", verb, "frist", *more])
    assert cli.main() == 2
    assert "did you mean 'first'?" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["llada-sft", verb, "first", *more])
    cli.main()
    assert "no such run" not in capsys.readouterr().err


def test_status_of_all_runs_imports_little(root: Path) -> None:
    make_run(root, "a", LAUNCHED, STARTED, ended("finished"))
    script = """
import sys
from llada_sft.cli import main
sys.argv = ["llada-sft", "status"]
assert main() == 0
heavy = {"torch", "numpy", "lightning", "transformers", "submitit", "pydantic", "yaml", "orjson"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
ours = {name for name in sys.modules if name.startswith("llada_sft.")}
assert not {name for name in ours if name.split(".")[1] in ("config", "training", "data")}, ours
"""
    subprocess.run([sys.executable, "-c", script], stdout=subprocess.DEVNULL, check=True)


def test_resume_takes_a_number_of_nodes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llada_sft.cluster.launch import launcher

    run = make_run(root, "a")
    given: list[tuple[object, ...]] = []
    monkeypatch.setattr(launcher, "resume", lambda *arguments: given.append(arguments) or 0)
    words = ["llada-sft", "resume", "a", "--nodes", "3", "train.max_steps=9"]
    monkeypatch.setattr(sys, "argv", words)
    assert cli.main() == 0
    ((resumed, overrides, *_),) = given
    assert (resumed, overrides) == (run, ["train.max_steps=9", "slurm.nodes=3"])


def test_a_folder_that_vanishes_is_no_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(root, "a", LAUNCHED, STARTED)
    monkeypatch.setattr(RunDir, "metrics", run.path / "gone/metrics.csv")
    run.checkpoints.rename(root / "elsewhere")
    assert rows(root)["a"][1] == "0"
