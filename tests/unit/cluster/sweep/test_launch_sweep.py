"""`launch.py --sweep` with a stand-in for sbatch: what is written, submitted and left alone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llada_sft.cluster import journal
from llada_sft.cluster.history import read
from llada_sft.cluster.launch import local
from llada_sft.run_dir import RunDir

FakeTool = Callable[[str, str], None]
Call = Callable[..., tuple[int, str, str]]
SWEEP = ["--config", "a.yaml", "run.name=first", "--sweep", "optim.lr=1e-5,2e-5,3e-5"]
NAMES = ["lr=1e-05", "lr=2e-05", "lr=3e-05"]


@pytest.fixture
def submitted(project: Path, fake_tool: FakeTool) -> Path:
    """Give jobs the numbers 42, 43, …; return the file with the text of each."""
    texts = project / "submitted"
    number = f"$((41 + $(grep -c '^#!/bin/bash' {texts})))"
    fake_tool(
        "sbatch",
        f'case "$*" in *--test-only*) exit 0;; esac\n'
        f'cat "$1" >> {texts}; echo "Submitted batch job {number}"',
    )
    fake_tool("srun", "exit 1")
    fake_tool("scontrol", 'echo "JobId=42 JobState=PENDING Restarts=0"')
    return texts


def runs(project: Path) -> list[RunDir]:
    return [RunDir(project / "runs/first" / name) for name in NAMES]


def test_each_run_is_a_job_of_its_own(call: Call, project: Path, submitted: Path) -> None:
    code, out, err = call(*SWEEP)
    assert (code, err) == (0, "")
    assert out.splitlines()[-6:] == [
        "lr=1e-05                 job 42",
        "lr=2e-05                 job 43",
        "lr=3e-05                 job 44",
        f"sweep         {project}/runs/first",
        f"status        llada-sft status {project}/runs/first",
        f"stop          llada-sft cancel {project}/runs/first",
    ]
    # Once for all.
    assert out.count("global batch") == 1
    assert [read(run.journal).job_id for run in runs(project)] == ["42", "43", "44"]
    text = submitted.read_text()
    assert [f"#SBATCH --job-name={name}\n" in text for name in NAMES] == [True] * 3
    assert "dependency" not in text
    assert json.loads((project / "runs/first/sweep.json").read_text()) == {
        "runs": [
            {"name": name, "values": {"optim.lr": lr}}
            for name, lr in zip(NAMES, (1e-05, 2e-05, 3e-05), strict=True)
        ]
    }


def test_a_sweep_is_shown_and_cancelled(
    call: Call, project: Path, submitted: Path, fake_tool: FakeTool
) -> None:
    call(*SWEEP)
    jobs = {"42": "COMPLETED", "43": "RUNNING", "44": "PENDING"}
    fake_tool("squeue", "\n".join(f"echo '{job}|{state}|1||None'" for job, state in jobs.items()))
    fake_tool("scancel", f'echo "$@" > {project}/cancelled')
    code, out, _ = call("status", "runs/first")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [
        ["lr=1e-05", "ended"],
        ["lr=2e-05", "RUNNING"],
        ["lr=3e-05", "PENDING"],
    ]
    assert call("cancel", "runs/first") == (0, "cancelled 2 jobs: 43 44\n", "")
    assert (project / "cancelled").read_text() == "44 43\n"
    fake_tool("squeue", "true")
    assert call("cancel", "runs/first") == (0, "no job to cancel\n", "")


def test_at_most_some_run_at_a_time(call: Call, project: Path, submitted: Path) -> None:
    assert call(*SWEEP, "--sweep-limit", "2")[0] == 0
    waits = [line for line in submitted.read_text().splitlines() if "--dependency" in line]
    assert waits == ["#SBATCH --dependency=afterany:42"]


def test_a_dependency_of_the_user_is_kept(call: Call, project: Path, submitted: Path) -> None:
    given = 'slurm.extra={dependency: "afterok:7"}'
    assert call(*SWEEP, "--sweep-limit", "1", given)[0] == 0
    waits = [line for line in submitted.read_text().splitlines() if "--dependency" in line]
    assert waits == [
        "#SBATCH --dependency=afterok:7",
        "#SBATCH --dependency=afterany:42,afterok:7",
        "#SBATCH --dependency=afterany:43,afterok:7",
    ]


def test_what_is_finished_or_owned_is_left_alone(
    call: Call, project: Path, submitted: Path
) -> None:
    call(*SWEEP)
    first, second, third = runs(project)
    journal.append(first.journal, {"event": "ended", "cause": "finished"})
    for owner in third.path.glob("owner.*"):
        owner.unlink()
    third.journal.write_text("")
    submitted.write_text("")
    code, out, _ = call(*SWEEP)
    assert code == 0
    lines = [line for line in out.splitlines() if line.startswith("lr=")]
    assert lines[0] == "lr=1e-05                 finished: left as it is"
    assert lines[1].startswith(f"lr=2e-05                 left as it is: run {second.path} is ")
    assert lines[2] == "lr=3e-05                 job 42"


def test_a_mistake_in_one_value_writes_nothing(call: Call, project: Path, submitted: Path) -> None:
    before = sorted(project.rglob("*"))
    code, out, err = call("--config", "a.yaml", "--sweep", "data.train=shards,nowhere,neither")
    assert (code, out) == (2, "")
    assert [line for line in err.splitlines() if "nowhere" in line or "neither" in line]
    assert sorted(project.rglob("*")) == before


def test_a_refused_job_says_what_was_launched(
    call: Call, project: Path, fake_tool: FakeTool, submitted: Path
) -> None:
    fake_tool(
        "sbatch",
        f'case "$*" in *--test-only*) exit 0;; esac\n'
        f"[ -e {submitted} ] && echo full >&2 && exit 1\n"
        f"touch {submitted}; echo Submitted batch job 42",
    )
    code, out, err = call(*SWEEP)
    assert code == 2
    assert "lr=1e-05                 job 42\n" in out
    # submitit passes on what sbatch printed.
    assert err.splitlines() == [
        "full",
        "lr=2e-05: sbatch refused the job: full",
        "1 of 3 runs are launched; for the others, give the same command again",
    ]


def test_a_dry_run_shows_the_runs_and_the_first(call: Call, project: Path) -> None:
    before = sorted(project.rglob("*"))
    code, out, _ = call(*SWEEP, "--dry-run")
    assert code == 0
    assert out.splitlines()[:6] == [
        f"# 3 runs in {project}/runs/first:",
        *(f"#   {name}" for name in NAMES),
        "# the first, lr=1e-05:",
        "#!/bin/bash",
    ]
    assert sorted(project.rglob("*")) == before


def test_a_dry_run_finds_the_problems_of_all_runs(call: Call, project: Path) -> None:
    sweep = "data.train=shards,nowhere,neither"
    code, out, err = call("--config", "a.yaml", "--sweep", sweep, "--dry-run")
    assert (code, out.count("#!/bin/bash")) == (2, 1)
    assert err.splitlines() == [
        f"{project}/{name}: no such folder or file" for name in ("nowhere", "neither")
    ]


def test_a_limit_without_a_sweep(call: Call) -> None:
    code, _, err = call("--config", "a.yaml", "--dry-run", "--sweep-limit", "2")
    assert (code, err) == (
        2,
        "--sweep-limit: is for the runs of --sweep: remove it, or give that\n",
    )


def test_plans_that_are_the_same_are_printed_once(call: Call) -> None:
    _, out, _ = call(*SWEEP, "--plan")
    assert out.count("# the plan of ") == 1
    assert "# the plan of lr=1e-05, lr=2e-05, lr=3e-05:\n" in out
    _, out, _ = call("--config", "a.yaml", "--sweep", "train.micro_batch_size=1,2", "--plan")
    assert out.count("# the plan of ") == 2


def test_prepare_prints_the_directories(call: Call, project: Path) -> None:
    code, out, _ = call(*SWEEP, "--prepare")
    assert (code, out.splitlines()) == (0, [str(run.path) for run in runs(project)])
    assert all(run.config.exists() for run in runs(project))


def test_local_runs_one_after_another(
    call: Call, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = {"lr=1e-05": 1, "lr=2e-05": 0, "lr=3e-05": 2}
    seen: list[str] = []

    def run_local(path: Path, config: object) -> int:
        seen.append(path.name)
        return codes[path.name]

    monkeypatch.setattr(local, "run_local", run_local)
    code, out, _ = call(*SWEEP, "--local")
    assert (code, seen) == (1, NAMES)
    assert "\nrun       state" in out
    codes |= dict.fromkeys(NAMES, 130)
    seen.clear()
    assert call(*SWEEP, "--local")[0] == 130
    # Ctrl-C ends the sweep, too.
    assert seen == NAMES[:1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--follow"], "--follow: shows one run: remove it, and look at all of them with "),
        (["--sweep-limit", "0"], "--sweep-limit: must be at least 1, got 0\n"),
        (["--sweep-limit", "1", "--local"], "--sweep-limit: is for jobs of SLURM: remove it\n"),
        (
            ["--sweep-limit", "1", "--after", "runs/a"],
            "--sweep-limit: cannot be combined with --after; remove one of them\n",
        ),
    ],
)
def test_options_that_do_not_fit(call: Call, arguments: list[str], message: str) -> None:
    code, _, err = call(*SWEEP, *arguments)
    assert code == 2
    assert err.startswith(message)


def test_the_directory_of_a_run_is_not_a_sweep(call: Call, project: Path, submitted: Path) -> None:
    call("--config", "a.yaml", "run.name=first", "--prepare")
    code, _, err = call(*SWEEP)
    message = f"{project}/runs/first: is the directory of a run: choose another run.name\n"
    assert (code, err) == (2, message)
