"""`--after`, and options of one submission: they reach sbatch once, and never config.yaml."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import launch
from llada_sft import cli
from llada_sft.cluster import journal
from llada_sft.config import load_config

FakeTool = Callable[[str, str], None]
Call = Callable[..., tuple[int, str]]
# The jobs that SLURM knows have numbers below 50.
SCONTROL = """
case "$*" in
  *"show job 4"[0-9]*) echo "JobId=$4 JobState=${STATE:-COMPLETED} Restarts=0";;
  *"show job"*) echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1;;
  *) true;;
esac
"""


@pytest.fixture
def call(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fake_tool: FakeTool,
) -> Call:
    """Call launch.py or `llada-sft`; the options that sbatch gets are in project/seen."""
    fake_tool("srun", "exit 1")
    fake_tool("sinfo", "true")
    fake_tool("scontrol", SCONTROL)
    submitted = f"grep '^#SBATCH' $1 > {project}/seen; echo Submitted batch job 42"
    fake_tool("sbatch", f'[ "$1" = --test-only ] || {{ {submitted}; }}')

    def run(*arguments: str) -> tuple[int, str]:
        main = launch.main if arguments[0].startswith("--") else cli.main
        monkeypatch.setattr(sys, "argv", ["launch.py", *arguments])
        code = main()
        return code, capsys.readouterr().err

    return run


def seen(project: Path) -> list[str]:
    """Return the options of the last submission that belong to it alone."""
    lines = (project / "seen").read_text().splitlines()
    names = ("--begin", "--dependency", "--deadline", "--comment")
    return [line.removeprefix("#SBATCH ") for line in lines if line[8:].startswith(names)]


def test_options_of_one_submission_are_not_repeated(call: Call, project: Path) -> None:
    once = "slurm.extra={begin: now+1, dependency: 'afterany:41', comment: stays}"
    assert call("--config", "a.yaml", once) == (0, "")
    assert seen(project) == ["--begin=now+1", "--comment=stays", "--dependency=afterany:41"]
    config = load_config("runs/a/config.yaml")
    assert config.slurm.extra == {"comment": "stays"}
    # The job is over.
    assert call("resume", "runs/a") == (0, "")
    assert seen(project) == ["--comment=stays"]
    assert call("resume", "runs/a", "slurm.extra.begin=now+9") == (0, "")
    assert seen(project) == ["--begin=now+9", "--comment=stays"]
    assert load_config("runs/a/config.yaml") == config
    assert [e["event"] for e in journal.read(project / "runs/a/journal.jsonl")] == ["launched"] * 3


def test_a_run_of_an_older_version_loses_them_at_its_first_resume(
    call: Call, project: Path
) -> None:
    assert call("--config", "a.yaml")[0] == 0
    file = project / "runs/a/config.yaml"
    file.write_text(file.read_text().replace("extra: {}", "extra: {begin: now+1}"))
    assert call("resume", "runs/a") == (0, "")
    assert seen(project) == []
    assert load_config(file).slurm.extra == {}


def test_a_job_starts_after_another_one(call: Call, project: Path) -> None:
    for after in ("41", "45_3"):
        assert call("--config", "a.yaml", "run.name=b", "--after", after) == (0, "")
        assert seen(project) == [f"--dependency=afterany:{after}"]
    # After the last job of a run, here a launch and a resume.
    assert call("--config", "a.yaml", "--after", "runs/b") == (0, "")
    assert seen(project) == ["--dependency=afterany:42"]
    assert load_config("runs/a/config.yaml").slurm.extra == {}
    assert call("resume", "runs/b", "--after", "runs/a") == (0, "")
    assert seen(project) == ["--dependency=afterany:42"]
    assert call("resume", "runs/b") == (0, "")
    assert seen(project) == []


def test_a_job_that_slurm_has_forgotten_is_over(call: Call, project: Path) -> None:
    assert call("--config", "a.yaml", "run.name=b")[0] == 0
    journal.append(project / "runs/b/journal.jsonl", {"event": "launched", "job_id": "77"})
    assert call("--config", "a.yaml", "--after", "runs/b") == (0, "")
    assert seen(project) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--after", "77"], "--after: SLURM has no job 77; see  squeue --me"),
        (["--after", "nowhere"], "nowhere: no such run: neither a path, nor a name in "),
        (["--after", "runs/b"], "--after: runs/b: the run has no job: launch it first, or give"),
        (
            ["--after", "41", "--local"],
            "--after: is for a job of SLURM: remove it, --local, --here",
        ),
        (
            ["--after", "41", "slurm.extra={dep: 'afterok:40'}"],
            "--after: slurm.extra.dependency is given, too; remove one of them",
        ),
    ],
)
def test_what_cannot_be_waited_for(
    call: Call, project: Path, arguments: list[str], said: str
) -> None:
    assert call("--config", "a.yaml", "run.name=b", "--prepare")[0] == 0
    code, error = call("--config", "a.yaml", *arguments)
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith(said)
    assert not (project / "runs/a").exists()


def test_a_dry_run_shows_what_it_would_wait_for(
    call: Call, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["launch.py", "--config", "a.yaml", "--dry-run", "--after", "41"]
    monkeypatch.setattr(sys, "argv", command)
    assert launch.main() == 0
    assert "#SBATCH --dependency=afterany:41\n" in capsys.readouterr().out


def test_several_clusters_are_refused_before_anything_is_written(
    call: Call, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CLUSTERS", "a,b")
    code, error = call("--config", "a.yaml")
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("SLURM_CLUSTERS: names several clusters, got 'a,b'")
    assert not (project / "runs").exists()
