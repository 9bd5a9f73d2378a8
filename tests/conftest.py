"""For all tests: a property holds however busy the machine is, and which run side by side."""

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
ROOT = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together what `pytest -n 2 --dist loadgroup` must not run side by side.

    The tests on SLURM share one cluster, which waits most of the time: the trainings of
    `distributed/` run meanwhile, one after the other.
    """
    for item in items:
        room = item.path.relative_to(ROOT).parts[0]
        if room != "unit":
            item.add_marker(pytest.mark.xdist_group("slurm" if room == "slurm" else "ranks"))
