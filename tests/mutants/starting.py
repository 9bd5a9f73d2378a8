"""Mutants of sweeps, and of runs that are started in an allocation or by hand."""

from tests.mutants.mutant import of_file

MUTANTS = (
    *of_file(
        "cluster/attempt/by_hand.py",
        "cluster/attempt/test_by_hand.py",
        (
            "if attempt is None or attempt.job_id is None:",
            "if attempt is None:",
            "ranks started by hand join an attempt whose ranks were killed",
        ),
        (
            "if group.rank:\n",
            "if False:\n",
            "each rank says that their number is wrong",
        ),
    ),
    *of_file(
        "cluster/launch/allocation.py",
        "cluster/launch/test_allocation.py",
        (
            "min(slurm.node_range) > self",
            "max(slurm.node_range) > self",
            "an elastic run is refused on fewer nodes",
        ),
        (
            "min(cpus, default=None)",
            "max(cpus, default=None)",
            "the node with most CPUs decides whether the ranks fit",
        ),
    ),
    *of_file(
        "cluster/sweep/grid.py",
        "cluster/sweep/test_grid.py",
        (
            "if value in seen:",
            "if text in seen:",
            "a value that is written in two ways is trained twice",
        ),
        (
            "names.count(name) == 1",
            "names",
            "two runs of a sweep have one name",
        ),
    ),
    *of_file(
        "cluster/sweep/launch_sweep.py",
        "cluster/sweep/test_launch_sweep.py",
        ("jobs[-limit]", "jobs[0]", "all runs of a sweep wait for the first"),
        (
            "code = code or own",
            "code = own",
            "a sweep ends well if its last run does",
        ),
    ),
    *of_file(
        "cluster/watch/sweep_table.py",
        "cluster/sweep/test_launch_sweep.py::test_a_sweep_is_shown_and_cancelled",
        ("*reversed(active)", "*active", "a job that waits starts while its sweep is cancelled"),
    ),
)
