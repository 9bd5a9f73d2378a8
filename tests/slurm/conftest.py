"""The tests' SLURM: started once for all of them, its logs shown with a failure.

It has no accounting unless LLADA_SFT_SLURM_PROFILE=accounting says so; test_accounting.py and
test_faults.py have it in any case, so that one run of the tests proves both.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from cluster import Cluster, Profile, wanted_profile
from project import new_project

from llada_sft.run_dir import RunDir

# Runs a line of bash in the test's `folder`, and gives what it prints.
Shell = Callable[[str], str]
# Launches the demo under a name, with overrides; gives the run directory and the job's id.
Launched = Callable[..., tuple[RunDir, str]]


@pytest.fixture(scope="session")
def slurm_installed() -> None:
    """Skip where this machine cannot run a SLURM; fail if it must."""
    require(wanted_profile())


def require(profile: Profile) -> None:
    """Skip where this machine cannot run a SLURM of this profile; fail if it must."""
    if problem := Cluster.missing(profile):
        # Where SLURM is meant to be tested, silence would look like success.
        if os.environ.get("LLADA_SFT_REQUIRE_SLURM") == "1":
            pytest.fail(problem, pytrace=False)
        pytest.skip(problem)


@pytest.fixture(scope="session")
def accounting_cluster() -> Iterator[Cluster]:
    """Yield a second cluster, with sacct; only what is given its environment talks to it."""
    require("accounting")
    with Cluster("accounting", "accounting") as running:
        yield running


@pytest.fixture(scope="session")
def cluster(slurm_installed: None) -> Iterator[Cluster]:
    """Yield a running cluster that sbatch and srun of this process talk to."""
    with Cluster(profile=wanted_profile()) as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", running.env["SLURM_CONF"])
        patch.setenv("PATH", running.env["PATH"])
        yield running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the daemons' logs to the report of a test that failed."""
    report = yield
    for running in getattr(item, "funcargs", {}).values():
        if report.failed and isinstance(running, Cluster):
            report.sections.append(("SLURM logs", running.logs()))
    return report


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder to launch from: what a checkout has, and the demo's data."""
    return new_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def shell(cluster: Cluster, folder: Path) -> Shell:
    """Run lines of a page as they stand there."""
    tools = f"{Path(sys.executable).parent}:{cluster.env['PATH']}"

    def run(command: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=folder,
            env={**cluster.env, "PATH": tools},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


def job_id(output: str) -> str:
    """Return the job that a launch names."""
    found = re.search(r"^job +(\d+)$", output, re.MULTILINE)
    assert found, output
    return found[1]


@pytest.fixture
def launched(cluster: Cluster, project: Path) -> Iterator[Launched]:
    """Launch the demo on two nodes, and cancel it when the test is over."""
    jobs: list[str] = []

    def launch(name: str, max_steps: int, *more: str) -> tuple[RunDir, str]:
        command = [sys.executable, "launch.py", "--config", "config/demo.yaml", "--nodes", "2"]
        # Four ranks on this machine are enough processes.
        fewer = "data.prefetch_steps=0"
        changes = [f"run.name={name}", f"train.max_steps={max_steps}", fewer, *more]
        output = cluster.run([*command, *changes], cwd=project)
        jobs.append(job_id(output))
        return RunDir(project / "runs" / name), jobs[-1]

    yield launch
    for job in jobs:
        subprocess.run(["scancel", job], env=cluster.env, check=False)
