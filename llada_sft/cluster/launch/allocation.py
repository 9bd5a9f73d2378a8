"""The allocation that a launcher runs in (`salloc`, or a batch script), for `--here`.

What a config needs is compared with what the allocation has before anything is written.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from llada_sft.config import Config
from llada_sft.errors import ConfigError, LaunchError

# Variables of the allocation that srun gets: all others of SLURM's would be options of a step.
_KEPT = frozenset(
    {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_CLUSTER_NAME", "SLURM_JWT"}
    | {"SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_JOB_NUM_NODES", "SLURM_JOB_PARTITION"}
)
_OF_SLURM = re.compile(r"(?:SLURM|SRUN|SLURMD|SBATCH|SALLOC)_")


@dataclass(frozen=True)
class Allocation:
    """Nodes that SLURM has given to this shell.

    Attributes:
        job_id: Its number.
        nodes: Its nodes, as SLURM writes them: "node[1-2]".
        num_nodes: How many these are.
        cpus: The CPUs on the node that has fewest of them; None where that is not known.
        gpus: The GPUs on a node; None where that is not known.
    """

    job_id: str
    nodes: str
    num_nodes: int
    cpus: int | None
    gpus: int | None

    @staticmethod
    def of(environment: Mapping[str, str]) -> "Allocation":
        """Read it from the variables of the shell.

        Raises:
            LaunchError: The shell is in no allocation.
        """
        try:
            job_id, nodes = environment["SLURM_JOB_ID"], environment["SLURM_JOB_NODELIST"]
            num_nodes = int(environment["SLURM_JOB_NUM_NODES"])
        except (KeyError, ValueError):
            raise LaunchError(
                "--here: this shell is in no SLURM allocation: get one with  salloc --nodes=N"
                "  first, or launch without --here"
            ) from None
        cpus = [int(n) for n in re.findall(r"(\d+)(?:\(x\d+\))?", _cpus_per_node(environment))]
        gpus = environment.get("SLURM_GPUS_ON_NODE", "")
        return Allocation(
            job_id=job_id,
            nodes=nodes,
            num_nodes=num_nodes,
            cpus=min(cpus, default=None),
            gpus=int(gpus) if gpus.isdecimal() else None,
        )

    def require(self, config: Config) -> None:
        """Check that the ranks of a config fit.

        Raises:
            ConfigError: One line for each thing that does not.
        """
        slurm = config.slurm
        problems = []
        if min(slurm.node_range) > self.num_nodes:
            problems.append(
                f"slurm.nodes: {min(slurm.node_range)} nodes are needed, and allocation"
                f" {self.job_id} has {self.num_nodes}: leave --nodes away, or get more nodes"
            )
        needed = slurm.ranks_per_node * slurm.cpus_per_rank
        if self.cpus is not None and needed > self.cpus:
            problems.append(
                f"slurm.cpus_per_rank: {slurm.ranks_per_node} ranks ×"
                f" {slurm.cpus_per_rank} CPUs = {needed} CPUs are needed on each node, and"
                f" allocation {self.job_id} has {self.cpus}: get it with  salloc"
                f" --ntasks-per-node={slurm.ranks_per_node}"
                f" --cpus-per-task={slurm.cpus_per_rank} , or set slurm.cpus_per_rank"
            )
        gpus = 0 if config.train.accelerator == "cpu" else slurm.ranks_per_node
        if self.gpus is not None and gpus > self.gpus:
            problems.append(
                f"slurm.ranks_per_node: {gpus} ranks need a GPU each, and allocation"
                f" {self.job_id} has {self.gpus} on a node: get it with  salloc"
                f" --gpus-per-node={gpus} , or set slurm.ranks_per_node={self.gpus}"
            )
        if problems:
            raise ConfigError("\n".join(problems))


def _cpus_per_node(environment: Mapping[str, str]) -> str:
    """Return the CPUs of each node, as SLURM writes them: "4(x2),8"."""
    return environment.get("SLURM_JOB_CPUS_PER_NODE", "")


def without_steps(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for srun in which no variable of SLURM's sets an option of a step."""
    return {
        name: value
        for name, value in environment.items()
        if name in _KEPT or not _OF_SLURM.match(name)
    }
