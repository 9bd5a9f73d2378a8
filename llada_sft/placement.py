"""Which rank a process is, and where rank 0 can be met: the same for SLURM, sbatch and --local."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    rank: int
    world_size: int
    local_rank: int
    node_rank: int
    master_addr: str
    master_port: int
