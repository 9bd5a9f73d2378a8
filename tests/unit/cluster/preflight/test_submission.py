"""All problems of a submission at once, and the note of a shell inside a job."""

from pathlib import Path

import pytest

from llada_sft.cluster.preflight import can_start, hook_trial, storage, submission
from llada_sft.config import Config, load_config, resolve_paths
from llada_sft.errors import ConfigError
from llada_sft.run_dir import RunDir


@pytest.fixture
def config(project: Path) -> Config:
    return resolve_paths(load_config("a.yaml"), project)


def answers(monkeypatch: pytest.MonkeyPatch, **said: str | None) -> None:
    """Let the three checks say something: None raises nothing and returns nothing."""

    def check(text: str | None) -> list[str]:
        if text and text.startswith("!"):
            raise ConfigError(text)
        return [text] if text else []

    monkeypatch.setattr(storage, "require", lambda *given: check(said.get("storage")))
    monkeypatch.setattr(hook_trial, "require", lambda *given: check(said.get("hook")))
    monkeypatch.setattr(can_start, "require", lambda *given: check(said.get("slurm")))


def test_all_problems_are_told_at_once(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(Path(config.run.root) / "a")
    answers(monkeypatch, storage="!disk", hook="a warning", slurm="!never")
    with pytest.raises(ConfigError) as error:
        submission.require(config, run, submits=True)
    assert str(error.value) == "!disk\n!never"
    answers(monkeypatch, storage="a", hook="b", slurm="c")
    assert submission.require(config, run, submits=True) == ["a", "b", "c"]
    # Ranks on this machine show at once what a hook does, and need no SLURM.
    answers(monkeypatch, storage="a", hook="!b", slurm="!c")
    assert submission.require(config, run, submits=False) == ["a"]


def test_a_shell_inside_a_job_gets_a_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    submission.notice_allocation()
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    submission.notice_allocation()
    assert capsys.readouterr() == (
        "",
        "note: this shell is inside job 42, and the run becomes a job of its own, which does not"
        " use that allocation: --here runs it inside\n",
    )
