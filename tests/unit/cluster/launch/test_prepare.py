"""The run directory: whole or not at all, the same run or another, and no secret in any file."""

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest

from llada_sft.cluster import journal
from llada_sft.cluster.launch import prepare, snapshot
from llada_sft.config import load_config
from llada_sft.errors import ConfigError
from llada_sft.run_dir import RunDir

COMMAND = ["python", "launch.py", "--config", "a.yaml", "run.name=a b"]


def create(project: Path, *overrides: str) -> tuple[RunDir, bool]:
    return prepare.create(load_config("a.yaml", overrides), project, COMMAND)


def started(project: Path) -> RunDir:
    """Make a run that an attempt was made of: it keeps its code and its config."""
    run, _ = create(project)
    journal.append(run.journal, {"event": "started", "attempt": 1})
    return run


def refusal(project: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        create(project, *overrides)
    return str(caught.value)


def test_what_is_in_it(project: Path) -> None:
    run, found = create(project)
    assert (run.path, found) == (project / "runs/a", False)
    config = load_config(run.config)
    assert (config.model.path, config.data.train) == (f"{project}/model", f"{project}/shards")
    assert (config.data.hook, config.slurm.setup) == (str(run.hook), str(run.setup))
    assert run.hook.read_text() == (project / "hook.py").read_text()
    assert run.setup.read_text() == (project / "setup.sh").read_text()
    assert (run.code / "llada_sft/config/schema.py").exists()
    assert {path.suffix for path in (run.code / "llada_sft").rglob("*") if path.is_file()} == {
        ".py"
    }
    assert run.command.read_text() == (
        f"cd {project} && python launch.py --config a.yaml 'run.name=a b'\n"
    )
    versions = json.loads(run.versions.read_text())
    assert versions["python"].startswith("3.")
    assert {"torch", "lightning", "deepspeed", "transformers", "submitit"} <= versions.keys()


@pytest.mark.parametrize("by_a_copy", [False, True])
def test_nothing_is_left_of_an_attempt_that_failed(
    project: Path, monkeypatch: pytest.MonkeyPatch, by_a_copy: bool
) -> None:
    def full(folder: Path) -> dict[str, str]:
        # As shutil.copyfile says it: the file that is read comes first.
        (partial,) = (project / "runs").glob(".a.*")
        files = ("/usr/lib/a.py", None, str(partial / "code/a.py")) if by_a_copy else ()
        raise OSError(errno.ENOSPC, "No space left on device", *files)

    monkeypatch.setattr(snapshot, "git_state", full)
    assert refusal(project) == (
        f"{project}/runs/a: cannot be written: No space left on device; see run.root"
    )
    assert list((project / "runs").iterdir()) == []


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o027, 0o077])
def test_modes_are_those_of_the_umask(project: Path, umask: int) -> None:
    (project / "hook.py").chmod(0o755)
    (project / "setup.sh").chmod(0o600)
    before = os.umask(umask)
    try:
        run, _ = create(project)
        journal.append(run.journal, {"event": "launched"})
    finally:
        os.umask(before)
    for path in (run.path, *run.path.rglob("*")):
        expected = 0o777 if path.is_dir() else 0o666
        assert path.stat().st_mode & 0o777 == expected & ~umask, path


def test_the_same_config_continues_the_run(project: Path) -> None:
    run = started(project)
    (project / "setup.sh").write_text("# changed\n")
    again, found = create(project, "slurm.nodes=1", "slurm.time_min=7", "log.csv=false")
    assert (again, found) == (run, True)
    config = load_config(run.config)
    assert (config.slurm.time_min, config.log.csv) == (7, False)
    assert run.setup.read_text() == "# changed\n"
    assert len(run.command.read_text().splitlines()) == 2
    assert journal.read(run.journal)[-1]["keys"] == {
        "slurm.time_min": [1440, 7],
        "log.csv": [True, False],
    }


def test_a_run_that_never_started_is_built_again_from_the_present_files(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = create(project)
    assert create(project) == (run, False)
    assert capsys.readouterr().err == ""
    (project / "hook.py").write_text("# fixed\ndef process_data(record, tokenizer, n): ...\n")
    (run.code / "llada_sft/left.py").touch()
    assert create(project, "optim.lr=1", "slurm.setup=null") == (run, False)
    said = f"{run.path}: it had never started: built again from the present files\n"
    assert capsys.readouterr().err == said
    assert run.hook.read_text() == (project / "hook.py").read_text()
    assert load_config(run.config).optim.lr == 1
    assert not run.setup.exists()
    assert not (run.code / "llada_sft/left.py").exists()
    # Nothing of the code that never ran is kept.
    assert not [path for path in run.path.iterdir() if path.name[:5] in ("code.", "updat")]


def test_setup_sh_goes_when_the_config_has_none(project: Path) -> None:
    run = started(project)
    create(project, "slurm.setup=null")
    assert not run.setup.exists()


def test_another_config_is_another_run(project: Path) -> None:
    run = started(project)
    before = run.config.read_text()
    (project / "hook.py").write_text("# other\n")
    assert refusal(project, "optim.lr=1", "train.epochs=9") == (
        f"{run.path}: is a run with another config: optim.lr, train.epochs, data.hook (its text)"
        " differ: choose another run.name, or launch with the values it has, or change the run: "
        f" llada-sft resume {run.path} --update-code optim.lr=1.0 train.epochs=9"
    )
    # The resume would by itself take the hook that the run was launched with.
    (project / "other hook.py").write_text("# other\n")
    assert refusal(project, "data.hook=other hook.py").endswith(
        f"  llada-sft resume {run.path} --update-code 'data.hook={project}/other hook.py'"
    )
    (run.checkpoints / "step_3").mkdir(parents=True)
    # No resume can change this.
    assert refusal(project, "run.seed=1") == (
        f"{run.path}: is a run with another config: run.seed, data.hook (its text)"
        " differ: choose another run.name, or launch with the values it has"
    )
    assert run.config.read_text() == before


def test_a_folder_of_something_else_is_left_alone(project: Path) -> None:
    (project / "runs/a").mkdir(parents=True)
    (project / "runs/a/mine").touch()
    assert refusal(project) == (
        f"{project}/runs/a: exists and is not a run directory: choose another run.name"
    )
    assert [path.name for path in (project / "runs").iterdir()] == ["a"]


@pytest.mark.parametrize("root", ["100%", "it's", 'a"b', "a\\b"])
def test_a_path_that_slurm_cannot_write_to(project: Path, root: str) -> None:
    quoted = json.dumps(root)
    assert refusal(project, f"run.root={quoted}") == (
        f"run.root: must not contain %, quotes or backslashes, got {project}/{root}/a"
    )


def test_a_folder_whose_name_is_no_text(project: Path) -> None:
    elsewhere = project.parent / os.fsdecode(b"caf\xe9")
    elsewhere.mkdir()
    files = ["data.train=shards", "data.hook=hook.py", "slurm.setup=setup.sh", "model.path=model"]
    absolute = [f"{file.replace('=', f'={project}/')}" for file in files]
    with pytest.raises(ConfigError, match=r"^run\.root: must be UTF-8, got "):
        prepare.create(load_config("a.yaml", absolute), elsewhere, ["launch.py"])
    config = load_config("a.yaml", [*absolute, f"run.root={project}/runs"])
    run, _ = prepare.create(config, elsewhere, ["launch.py"])
    assert os.fsencode(elsewhere) in run.command.read_bytes()


def git(project: Path, *arguments: str) -> None:
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(project), *author, *arguments], check=True)


def test_the_state_of_git_is_kept(project: Path) -> None:
    git(project, "init", "-q")
    git(project, "add", "hook.py")
    git(project, "commit", "-qm", "a")
    (project / "hook.py").write_text("# now\ndef process_data(): ...\n")
    run, _ = create(project)
    assert len((run.code / "commit.txt").read_text().strip()) == 40
    assert "+# now" in (run.code / "diff.patch").read_text()
    assert "a.yaml" in (run.code / "untracked.txt").read_text().splitlines()


def test_without_git_there_is_nothing_to_keep(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    run, _ = create(project)
    assert not (run.code / "commit.txt").exists()


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "DB_PASSWORD", "my_secret"])
def test_no_secret_reaches_a_file(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    secret = "abc-0123456789"
    monkeypatch.setenv(name, secret)
    git(project, "init", "-q")
    git(project, "add", "setup.sh")
    git(project, "commit", "-qm", "a")
    (project / "setup.sh").write_text("# new\n")
    (project / "shards/0.jsonl").write_text(secret)
    git(project, "add", "shards/0.jsonl")
    run, _ = prepare.create(load_config("a.yaml"), project, [*COMMAND, secret])
    for file in run.path.rglob("*"):
        assert not file.is_file() or secret not in file.read_text()
    assert "***" in run.command.read_text()
    assert "***" in (run.code / "diff.patch").read_text()
