"""A run directory that was moved, renamed or copied: its own paths, and nobody else's jobs."""

import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llada_sft.cluster import history, journal, moved
from llada_sft.cluster.launch import local, prepare
from llada_sft.cluster.launch.launcher import launch, resume
from llada_sft.cluster.launch.request import LaunchOptions
from llada_sft.cluster.watch import status
from llada_sft.config import load_config
from llada_sft.errors import ConfigError, LaunchError
from llada_sft.run_dir import RunDir

FakeTool = Callable[[str, str], None]


@pytest.fixture
def run(project: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run whose job 42 trains; ranks of a local run are not started."""
    monkeypatch.setattr(local, "run_local", lambda path, config: 0)
    found, _ = prepare.create(load_config("a.yaml"), project, ["launch.py"])
    journal.append(found.journal, {"event": "launched", "job_id": "42"})
    journal.append(found.journal, {"event": "started", "attempt": 1, "job_id": "42"})
    return found


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def copied(run: RunDir, to: Path) -> RunDir:
    shutil.copytree(run.path, to, symlinks=True)
    return RunDir(to)


def again(run: RunDir) -> int:
    return resume(run, (), local=True, follow=False)


@pytest.mark.parametrize("name", ["runs/b", "other/a", "with space/b c"])
def test_a_moved_run_resumes_in_its_new_place(
    run: RunDir, project: Path, name: str, fake_tool: FakeTool
) -> None:
    fake_tool("scontrol", "echo JobId=42 JobState=COMPLETED")
    new = RunDir(project / name)
    new.path.parent.mkdir(exist_ok=True)
    run.path.rename(new.path)
    assert again(new) == 0
    assert not run.path.exists()
    config = load_config(new.config)
    assert (config.data.hook, config.slurm.setup) == (str(new.hook), str(new.setup))
    assert config.run.root == str(new.path.parent)
    assert config.run.name == ("a" if " " in name else new.path.name)
    assert str(run.path) + "/" not in new.config.read_text()
    (entry,) = [one for one in journal.read(new.journal) if one["event"] == "changed"]
    assert entry["moved_from"] == str(run.path)
    # It is at home now.
    assert moved.old_place(new) is None


def test_a_copy_of_a_run_that_trains_is_another_run(
    run: RunDir, project: Path, fake_tool: FakeTool, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_tool("scontrol", "echo JobId=42 JobState=RUNNING")
    fake_tool("scancel", "exit 1")
    run.wandb_id.write_text("a-1234\n")
    before = contents(run.path)
    copy = copied(run, project / "runs/copy")
    assert "job          none" in "\n".join(status.status_lines(copy))
    with pytest.raises(LaunchError, match="has no SLURM job"):
        status.cancel_run(copy)
    assert again(copy) == 0
    assert f"copied           from {run.path}: nothing there is used" in capsys.readouterr().out
    # At W&B, too, it is another run.
    assert copy.wandb_id.read_text() != run.wandb_id.read_text()
    # The attempt that is under way is not the copy's.
    assert history.read(copy.journal).open is None
    assert contents(run.path) == before
    # Also when it is resumed before it was ever launched from its new place.
    assert history.read(copy.journal).job_id is None
    with pytest.raises(LaunchError, match="is trained by job 42, RUNNING"):
        again(run)


def test_a_whole_project_that_was_moved(
    run: RunDir, project: Path, monkeypatch: pytest.MonkeyPatch, fake_tool: FakeTool
) -> None:
    """Data and model are outside of the run: where they are now is for the user to say."""
    fake_tool("scontrol", "echo JobId=42 JobState=COMPLETED")
    new = project.with_name("elsewhere")
    project.rename(new)
    monkeypatch.chdir(new)
    with pytest.raises(ConfigError) as caught:
        launch(LaunchOptions("a.yaml", prepare=True))
    command = shlex.split(str(caught.value).partition("or change the run:  ")[2])
    assert command[:3] == ["llada-sft", "resume", f"{new}/runs/a"]
    moved_run = RunDir(new / "runs/a")
    assert resume(moved_run, command[3:], local=True, follow=False) == 0
    assert str(project) + "/" not in moved_run.config.read_text()
    # Now it is the run of this config again.
    assert launch(LaunchOptions("a.yaml", prepare=True)) == 0


@pytest.mark.parametrize("stored", [None, "a-1234\n"])
def test_at_wandb_a_moved_run_is_the_same_and_a_copy_another(
    run: RunDir, project: Path, stored: str | None, fake_tool: FakeTool
) -> None:
    fake_tool("scontrol", "echo JobId=42 JobState=COMPLETED")
    (run.logs / "wandb").mkdir()
    if stored is not None:
        (run.path / "wandb_id.txt").write_text(stored)
    copy = copied(run, project / "runs/copy")
    assert again(copy) == 0
    assert re.fullmatch(r"copy-[0-9a-f]{8}\n", (copy.path / "wandb_id.txt").read_text())
    new = RunDir(project / "runs/new")
    run.path.rename(new.path)
    assert again(new) == 0
    assert (new.path / "wandb_id.txt").read_text() == (stored or "a\n")


def test_a_copy_of_a_pending_run_that_is_launched(
    project: Path, fake_tool: FakeTool, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_tool("scontrol", "echo JobId=42 JobState=PENDING")
    run, _ = prepare.create(load_config("a.yaml"), project, ["launch.py"])
    journal.append(run.journal, {"event": "launched", "job_id": "42"})
    copy = copied(run, project / "other/a")
    assert launch(LaunchOptions("a.yaml", overrides=["run.root=other"], prepare=True)) == 0
    assert f"copied           from {run.path}: nothing there is used" in capsys.readouterr().err
    assert moved.old_place(copy) is None
    assert history.read(copy.journal).job_id is None


def test_a_copy_that_shares_files_with_the_original_leaves_them_alone(
    run: RunDir, project: Path
) -> None:
    """`cp -al`: what is appended to one file would be in the other, too."""
    run.metrics.write_text("step,loss\n")
    before = contents(run.path)
    copy = RunDir(project / "runs/copy")
    shutil.copytree(run.path, copy.path, copy_function=os.link)
    assert again(copy) == 0
    for path in (copy.journal, copy.command, copy.metrics):
        with path.open("a") as file:
            file.write("more\n")
    assert contents(run.path) == before


def test_a_checkpoint_that_is_a_link_into_the_original(run: RunDir, project: Path) -> None:
    (run.checkpoints / "step_3").mkdir(parents=True)
    copy = copied(run, project / "runs/copy")
    (copy.checkpoints / "step_3").rmdir()
    (copy.checkpoints / "step_3").symlink_to(run.checkpoints / "step_3")
    line = r"copy/checkpoints/step_3: a link to \S*, which is of the run \S*; make it a copy$"
    with pytest.raises(LaunchError, match=line):
        again(copy)


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("into the original", r"which is of the run \S*; make it a copy"),
        ("shared", r"which is of the run \S*; make it a copy"),
        ("nowhere", "which does not exist; restore it"),
    ],
)
def test_links_that_lead_out_of_a_copy_are_refused(
    run: RunDir, project: Path, link: str, said: str
) -> None:
    elsewhere = project / "scratch"
    elsewhere.mkdir()
    target = {"into the original": run.path / "ck", "shared": elsewhere, "nowhere": Path("../../x")}
    (run.path / "ck").mkdir()
    run.checkpoints.symlink_to(target[link])
    copy = copied(run, project / "runs/copy")
    before = contents(copy.path)
    with pytest.raises(LaunchError, match=rf"^\S*copy/checkpoints: a link to \S*, {said}$"):
        again(copy)
    assert contents(copy.path) == before


@pytest.mark.parametrize("name", ["100%", "it's", 'a"b', "a\\b"])
def test_a_name_that_slurm_cannot_write_to_is_refused(
    run: RunDir, project: Path, name: str, fake_tool: FakeTool
) -> None:
    fake_tool("scontrol", "echo JobId=42 JobState=COMPLETED")
    new = RunDir(project / "runs" / name)
    run.path.rename(new.path)
    with pytest.raises(LaunchError, match=r"must not contain %, quotes or backslashes; rename it$"):
        again(new)


def test_a_link_of_its_own_moves_along(run: RunDir, project: Path, fake_tool: FakeTool) -> None:
    fake_tool("scontrol", "echo JobId=42 JobState=COMPLETED")
    (project / "scratch").mkdir()
    run.checkpoints.symlink_to("../../scratch")
    new = RunDir(project / "runs/b")
    run.path.rename(new.path)
    assert again(new) == 0


def test_another_name_of_the_same_directory_is_no_move(run: RunDir, project: Path) -> None:
    (project / "link").symlink_to("runs")
    assert moved.old_place(RunDir(project / "link/a")) is None


@pytest.mark.parametrize(
    "text", ["", "[", "data: 1", "data: {hook: 1}", "data: {hook: a.py}", "data: {hook: /x/y.py}"]
)
def test_a_config_that_names_no_place_is_where_it_is(run: RunDir, text: str) -> None:
    run.config.write_text(text)
    assert moved.old_place(run) is None
    assert not moved.is_copy(run)


def test_urls_and_other_paths_stay(run: RunDir, project: Path) -> None:
    config = load_config(run.config, ["data.train=[s3://b/runs, /data/x]", "data.cache_dir=/c"])
    inside = config.model_copy(
        update={"data": config.data.model_copy(update={"validation": f"{run.path}/held_out"})}
    )
    copy = copied(run, project / "runs/copy")
    data = moved.rebase(inside, copy).data
    assert (data.train, data.cache_dir) == (("s3://b/runs", "/data/x"), "/c")
    assert data.validation == f"{copy.path}/held_out"
