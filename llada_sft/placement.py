"""The rank of a process, and where to meet rank 0: the same for SLURM, sbatch and --local."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    rank: int
    world_size: int
    local_rank: int
    node_rank: int
    master_addr: str
    master_port: int
