"""What a launch is asked for: its options, the config that they give, and its run directory.

Imports little: a dry run needs no more of the launcher than this.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llada_sft.cluster.batch.options import without_one_shots
from llada_sft.config import Config, load_config, resolve_paths
from llada_sft.config.reader import Loaded, load_with_origins
from llada_sft.errors import ConfigError
from llada_sft.run_dir import RunDir, path_problem


@dataclass(frozen=True)
class LaunchOptions:
    """The options of the command line."""

    config: str
    overrides: Sequence[str] = ()
    nodes: int | None = None
    local: bool = False
    here: bool = False
    dry_run: bool = False
    print_config: bool = False
    prepare: bool = False
    plan: bool = False
    gpu: str = "NVIDIA H100"
    mfu: float = 0.4
    tokens: float | None = None
    measured: str | None = None
    follow: bool = False
    cluster: str | None = None
    after: str | None = None
    sweep: Sequence[str] = ()
    sweep_limit: int | None = None
    # A sweep checks the first of its runs, and what differs in the others.
    preflight: bool = True
    command: Sequence[str] = field(default_factory=lambda: ["python", *sys.argv])

    @property
    def submits(self) -> bool:
        """Whether a job of SLURM is asked for, and not ranks started here or later."""
        return not (self.local or self.here or self.prepare)

    @property
    def only_looks(self) -> bool:
        """Whether nothing is to be written or submitted."""
        return self.print_config or self.plan or self.dry_run


def load_request(options: LaunchOptions) -> Loaded:
    """Read the config that the options give.

    Raises:
        ConfigError: It has one line for each mistake.
        LaunchError: --here is given, and the shell is in no allocation.
    """
    if options.local:
        # This is one machine, whatever number of nodes a job may get.
        extra = [f"slurm.nodes={options.nodes or 1}", "slurm.elastic=null"]
    elif (options.prepare or options.here) and _is_elastic(options):
        # slurm/train.sbatch passes what an elastic job got this time; the global batch must not
        # depend on it.
        extra = []
    elif options.here and options.nodes is None:
        from llada_sft.cluster.launch.allocation import Allocation

        extra = [f"slurm.nodes={Allocation.of(os.environ).num_nodes}"]
    elif options.nodes is None:
        extra = []
    else:
        extra = [f"slurm.nodes={options.nodes}"]
    return load_with_origins(options.config, [*options.overrides, *extra], options.cluster)


def _is_elastic(options: LaunchOptions) -> bool:
    config = load_config(options.config, options.overrides, options.cluster)
    return config.slurm.elastic is not None


def resolved(config: Config, base: Path) -> Config:
    """Return the config as it is written to the run directory, which need not exist yet.

    It has no options of sbatch that belong to one submission (`batch/options.py`).

    Raises:
        ConfigError: SLURM could not write to such a path.
    """
    config = without_one_shots(resolve_paths(config, base))
    run = run_dir_of(config)
    if problem := path_problem(run.path):
        raise ConfigError(f"run.root: {problem}, got {run.path}")
    setup = None if config.slurm.setup is None else str(run.setup)
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"hook": str(run.hook)}),
            "slurm": config.slurm.model_copy(update={"setup": setup}),
        }
    )


def run_dir_of(config: Config) -> RunDir:
    """Return the run directory of a config with absolute paths."""
    return RunDir(Path(config.run.root) / config.run.name)
