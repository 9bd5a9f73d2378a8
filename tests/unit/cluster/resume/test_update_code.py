"""`llada-sft resume RUN --update-code`: the present code, and every value as it was."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llada_sft.cluster import door, journal
from llada_sft.cluster.launch import local, prepare, snapshot
from llada_sft.cluster.launch.launcher import resume
from llada_sft.cluster.launch.origin import Origin, origin_of
from llada_sft.cluster.resume import changing, update_code
from llada_sft.cluster.resume.old_version import OldConfig, carry_over, read_old
from llada_sft.config import load_config
from llada_sft.config.reader import read_values
from llada_sft.errors import ConfigError, LaunchError
from llada_sft.run_dir import RunDir
from tests.unit.cluster.conftest import CONFIG

GOLDEN = Path(__file__).parents[3] / "golden"
FIXED = "# fixed\ndef process_data(record, tokenizer, max_length): return None\n"
Resume = Callable[..., int]


@pytest.fixture
def run(project: Path) -> RunDir:
    """A run that was launched and has started."""
    found, _ = prepare.create(load_config("a.yaml"), project, ["launch.py", "--config", "a.yaml"])
    journal.append(found.journal, {"event": "started", "attempt": 1})
    return found


@pytest.fixture
def older(run: RunDir, request: pytest.FixtureRequest) -> RunDir:
    """Make it a run of an older version, that before the door if the test names none."""
    shutil.rmtree(run.code / "llada_sft")
    # Only the Python files of a version are kept.
    with tarfile.open(GOLDEN / getattr(request, "param", "older_package.tar.gz")) as package:
        package.extractall(run.code, filter="data")
    run.origin.unlink()
    # Its config has the keys of that version alone.
    Path("old.yaml").write_text(CONFIG.replace(", try_rows: 0", ""))
    overrides = [f"data.hook={run.hook}", f"slurm.setup={run.setup}"]
    program = (
        "import sys; from llada_sft.config import dump_config, load_config, resolve_paths;"
        "print(dump_config(resolve_paths(load_config('old.yaml', sys.argv[1:]), '.')), end='')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *overrides],
        env={**os.environ, "PYTHONPATH": str(run.code), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    run.config.write_text(done.stdout)
    return run


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> Resume:
    """Resume a run, without starting ranks."""
    monkeypatch.setattr(local, "run_local", lambda path, config: 0)

    def call(run: RunDir, *overrides: str, update: bool = True) -> int:
        return resume(run, overrides, local=True, follow=False, update_code=update)

    return call


def changed(run: RunDir) -> Any:
    (entry,) = [entry for entry in journal.read(run.journal) if entry.get("event") == "changed"]
    return entry


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


def test_a_fixed_hook_is_taken_from_where_it_came(
    run: RunDir, project: Path, again: Resume, capsys: pytest.CaptureFixture[str]
) -> None:
    before = run.hook.read_text()
    (project / "hook.py").write_text(FIXED)
    (project / "setup.sh").write_text("export FROM_SETUP=2\n")
    # Of an update that was killed.
    (run.path / "update.partial-abc/code").mkdir(parents=True)
    (run.code / "llada_sft/gone.py").write_text("a = 1\n")
    assert again(run, "optim.lr=1") == 0
    assert run.hook.read_text() == FIXED
    assert run.setup.read_text() == "export FROM_SETUP=2\n"
    assert not list(run.path.glob("update*"))
    assert (run.path / "code.1/process_data.py").read_text() == before
    lines = capsys.readouterr().out.splitlines()
    assert "changed          optim.lr: 2.5e-05 -> 1.0" in lines
    assert [line for line in lines if line.startswith("file ")] == [
        "file             removed  llada_sft/gone.py (+0 -1 lines)",
        "file             changed  process_data.py (+2 -1 lines)",
        "file             changed  setup.sh (+1 -1 lines)",
    ]
    assert {"--- process_data.py (before)", "+# fixed", f"-{before.strip()}"} <= set(lines)
    entry = changed(run)
    assert entry["keys"] == {"optim.lr": [2.5e-05, 1.0]}
    assert entry["code"]["changed"] == ["process_data.py", "setup.sh"]
    assert entry["code"]["removed"] == ["llada_sft/gone.py"]
    assert load_config(run.config).optim.lr == 1
    assert load_config(run.config).data.hook == str(run.hook)
    # A second one keeps the code before it, too.
    (project / "hook.py").write_text(before)
    assert again(run) == 0
    assert (run.path / "code.2/process_data.py").read_text() == FIXED


def test_another_hook_and_no_setup(run: RunDir, project: Path, again: Resume) -> None:
    (project / "sub").mkdir()
    (project / "sub/other.py").write_text(FIXED)
    assert again(run, "data.hook=sub/other.py", "slurm.setup=null") == 0
    assert run.hook.read_text() == FIXED
    # From wherever it is called: the commit of the package.
    commit = snapshot.git_state(Path(__file__).parent).get("commit.txt", "").strip()
    assert (changed(run)["code"]["after"]["commit"] or "") == commit
    assert not run.setup.exists()
    assert load_config(run.config).slurm.setup is None
    assert origin_of(run) == Origin(f"{project}/sub/other.py", None)


def test_the_runs_own_hook_is_kept_where_it_is_named(
    run: RunDir, project: Path, again: Resume
) -> None:
    before = run.hook.read_text()
    (project / "hook.py").unlink()
    with pytest.raises(ConfigError, match=r"hook\.py: cannot be read: .*; set data\.hook"):
        again(run)
    assert not (run.path / "code.1").exists()
    assert again(run, f"data.hook={run.hook}") == 0
    assert run.hook.read_text() == before
    # It still comes from where it came.
    (project / "hook.py").write_text(FIXED)
    assert again(run) == 0
    assert run.hook.read_text() == FIXED


def test_a_mistake_changes_nothing(run: RunDir, project: Path, again: Resume) -> None:
    before = contents(run.path)
    (project / "hook.py").write_text("def process_data(a): ...\n")
    with pytest.raises(ConfigError, match="cannot take three arguments"):
        again(run, "optim.lr=1")
    with pytest.raises(ConfigError, match="cannot change within a run"):
        again(run, "run.root=x")
    assert contents(run.path) == before


def test_a_run_that_somebody_owns_is_not_updated(
    run: RunDir, project: Path, again: Resume, fake_tool: Callable[[str, str], None]
) -> None:
    fake_tool("scontrol", "echo JobId=42 JobState=RUNNING")
    journal.append(run.journal, {"event": "launched", "job_id": "42"})
    (project / "hook.py").write_text(FIXED)
    before = contents(run.path)
    with pytest.raises(LaunchError, match="42"):
        again(run, "optim.lr=1")
    assert contents(run.path) == before


@pytest.mark.slow
def test_an_update_that_was_interrupted_is_old_or_new(
    run: RunDir, project: Path, again: Resume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped before each of the renames that it makes, one after another."""
    (project / "hook.py").write_text(FIXED)
    seen: list[tuple[bool, bool]] = []
    while not seen or not seen[-1][0]:
        whole = Path(f"{run.path}.whole")
        shutil.copytree(run.path, whole)
        with monkeypatch.context() as patched:
            finished = _stop_at(len(seen), patched, lambda: again(run, "optim.lr=1"))
        update_code.finish_update(run)
        is_new = run.hook.read_text() == FIXED
        assert (load_config(run.config).optim.lr == 1) == is_new
        assert (run.path / "code.1").exists() == is_new
        assert not run.update.exists()
        seen.append((finished, is_new))
        # As it was before, and in the same place.
        shutil.rmtree(run.path)
        whole.rename(run.path)
    changes = [is_new for _, is_new in seen]
    # Old at first, and from one moment on new.
    assert changes == sorted(changes)
    assert changes[0] is False
    assert len(changes) > 5


@pytest.mark.parametrize("text", [None, "", "[]", "{}"])
def test_an_update_that_cannot_be_finished_is_one_line(
    run: RunDir, again: Resume, text: str | None
) -> None:
    run.update.mkdir()
    if text is not None:
        (run.update / "decision.json").write_text(text)
    with pytest.raises(LaunchError) as caught:
        again(run, update=False)
    assert str(caught.value).endswith(
        "runs/a/update: not an update that can be finished: decision.json is damaged; remove the"
        " folder, and update again"
    )


def test_of_two_updates_one_is_refused(run: RunDir) -> None:
    """On a file system where both were let in: the other one has decided first."""
    building = update_code.build(run, str(run.hook), None, run.path)
    (run.update / "code").mkdir(parents=True)
    before = run.config.read_text()
    with pytest.raises(LaunchError) as caught:
        update_code.commit(run, building, "", {"event": "changed"})
    assert str(caught.value) == f"{run.path}: another update of it is under way; try again"
    assert run.config.read_text() == before


class _Killed(BaseException):
    pass


def _stop_at(number: int, patched: pytest.MonkeyPatch, act: Callable[[], int]) -> bool:
    """Let so many renames happen; tell whether the whole was done."""
    done = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal done
            done += 1
            if done > number:
                raise _Killed
            return real(*arguments)

        return call

    patched.setattr(Path, "rename", counted(Path.rename))
    patched.setattr(Path, "replace", counted(Path.replace))
    try:
        act()
    except _Killed:
        return False
    return True


@pytest.mark.parametrize("prepared", [False, True])
def test_a_run_of_an_older_version_goes_on_with_the_present_code(
    older: RunDir, again: Resume, prepared: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if prepared:
        # From another folder than it was launched from.
        older.command.unlink()
    with pytest.raises(LaunchError, match="--update-code"):
        again(older, update=False)
    values = read_values(older.config)
    assert again(older) == 0
    assert door.door_of(older) is not None
    now = read_values(older.config)
    # What was true then has a name now, and one key has another name.
    values["model"]["activation_checkpointing"] = "full"
    values["data"]["end"] = values["data"].pop("eos_tail")
    assert {name: {key: now[name][key] for key in values[name]} for name in values} == values
    said = capsys.readouterr().out
    assert "config           run.owner_timeout_s: is new: " in said
    assert "config           data.eos_tail: is called data.end now\n" in said
    assert "data.eos_tail: is no longer" not in said
    # Keys that are new have their values written down, too.
    assert now["train"].keys() > values["train"].keys()
    assert (older.path / "code.1/llada_sft/cluster/ports.py").exists()


def test_a_run_that_has_lost_its_code_gets_it_again(run: RunDir, again: Resume) -> None:
    hook = run.hook.read_text()
    shutil.rmtree(run.code)
    with pytest.raises(LaunchError, match="has no copy of llada_sft in code/"):
        again(run, update=False)
    assert again(run) == 0
    assert run.hook.read_text() == hook
    assert run.kept_code() == []


def test_where_a_hook_came_from_is_read_in_the_command(older: RunDir, project: Path) -> None:
    assert origin_of(older) == Origin(f"{project}/hook.py", f"{project}/setup.sh")
    older.command.write_text(f"cd {project} && python launch.py --config=a.yaml data.hook=b.py\n")
    assert origin_of(older).hook == f"{project}/b.py"
    # A preset is found from the folder of the launch.
    (project / "config/cluster").mkdir(parents=True)
    (project / "config/cluster/ours.yaml").write_text("data: {hook: c.py}\n")
    (project / "a.yaml").write_text((project / "a.yaml").read_text().replace(", hook: hook.py", ""))
    launch = f"cd {project} && python launch.py --config a.yaml"
    for preset in ("--cluster ours", "--cluster=config/cluster/ours.yaml"):
        older.command.write_text(f"{launch} {preset}\n")
        assert origin_of(older).hook == f"{project}/c.py"
    for text in ("", "cd 'x", "python launch.py", "cd a && python launch.py --config", "cd a && b"):
        older.command.write_text(text)
        assert origin_of(older) == Origin()


@pytest.mark.parametrize("older", ["older_package.tar.gz", "flat_package.tar.gz"], indirect=True)
def test_the_old_code_says_what_its_config_means(older: RunDir) -> None:
    old = read_old(older)
    assert old.values["data"]["max_length"] == 4096
    assert old.defaults["optim"]["lr"] == 2.5e-5
    # Broken code of the run's own: the file alone.
    shutil.rmtree(older.code / "llada_sft/config")
    assert read_old(older) == OldConfig(read_values(older.config))


def test_keys_that_are_read_differently_are_listed() -> None:
    values = {"run": {"name": "a"}, "optim": {"lr": 1e-4, "eps": 1e-8, "rate": 3}, "old": {}}
    defaults = {"optim": {"lr": 1e-4, "eps": 1e-8}}
    data, lines = carry_over(OldConfig(values, defaults))
    assert data["optim"] == {"lr": 1e-4, "eps": 1e-8}
    assert "optim.lr: stays 0.0001; the default is now 2.5e-05" in lines
    assert "optim.rate: is no longer a key; was 3" in lines
    assert "old: is no longer a section" in lines
    assert "optim.gradient_clip: is new: 1.0" in lines
    assert not [line for line in lines if line.startswith("optim.eps")]


def test_the_config_has_keys_that_are_gone(run: RunDir, again: Resume) -> None:
    text = run.config.read_text().replace("log:\n", "log:\n  paper: true\n")
    run.config.write_text(text)
    with pytest.raises(ConfigError, match="paper"):
        again(run, update=False)
    assert again(run) == 0
    assert "paper" not in run.config.read_text()


def test_a_run_that_somebody_changed_meanwhile_is_left_to_them(run: RunDir) -> None:
    plan = changing.plan(run, ["optim.lr=1"], Path.cwd(), update=False)
    theirs = run.config.read_text().replace("lr: 2.5e-05", "lr: 3.0")
    run.config.write_text(theirs)
    with pytest.raises(LaunchError, match=r"somebody else has changed it meanwhile; try again$"):
        changing.apply(run, plan)
    assert run.config.read_text() == theirs


def test_secrets_do_not_reach_the_journal(
    run: RunDir, again: Resume, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("S3_SECRET", "abc-0123456789")
    assert again(run, "data.cache_dir=/x/abc-0123456789", update=False) == 0
    assert changed(run)["keys"] == {"data.cache_dir": [None, "/x/***"]}
    assert "abc-0123456789" not in run.journal.read_text() + capsys.readouterr().out


def test_a_run_directory_that_cannot_be_written_is_one_line(
    run: RunDir, again: Resume, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> str:
        raise OSError(30, "Read-only file system", "a.yaml")

    monkeypatch.setattr(Path, "write_text", read_only)
    with pytest.raises(LaunchError, match=r"^a\.yaml: cannot be written: Read-only file system$"):
        again(run, "optim.lr=1", update=False)


def test_setup_sh_changes_without_other_code(run: RunDir, project: Path, again: Resume) -> None:
    (project / "other.sh").write_text("export FROM_SETUP=3\n")
    assert again(run, "slurm.setup=other.sh", update=False) == 0
    assert run.setup.read_text() == "export FROM_SETUP=3\n"
    assert load_config(run.config).slurm.setup == str(run.setup)
    assert json.loads(json.dumps(changed(run)["keys"])) == {
        "slurm.setup": [str(run.setup), f"{project}/other.sh"]
    }
