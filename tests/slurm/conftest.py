"""The tests' SLURM: started once for all of them, its logs shown with a failure."""

import os
from collections.abc import Generator, Iterator

import pytest
from cluster import Cluster


@pytest.fixture(scope="session")
def slurm_installed() -> None:
    """Skip where this machine cannot run a SLURM; fail if it must."""
    if problem := Cluster.missing():
        # Where SLURM is meant to be tested, silence would look like success.
        if os.environ.get("LLADA_SFT_REQUIRE_SLURM") == "1":
            pytest.fail(problem, pytrace=False)
        pytest.skip(problem)


@pytest.fixture(scope="session")
def cluster(slurm_installed: None) -> Iterator[Cluster]:
    """Yield a running cluster that sbatch, srun and submitit of this process talk to."""
    with Cluster() as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", running.env["SLURM_CONF"])
        patch.setenv("PATH", running.env["PATH"])
        yield running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the daemons' logs to the report of a test that failed."""
    report = yield
    running = getattr(item, "funcargs", {}).get("cluster")
    if report.failed and isinstance(running, Cluster):
        report.sections.append(("SLURM logs", running.logs()))
    return report
