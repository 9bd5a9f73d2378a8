"""The schedule of a training: that of its checkpoint, or a new one from a sample of its rows."""

from typing import cast

from llada_sft.config.schema import Config
from llada_sft.data.steps.dataset import StepDataset
from llada_sft.data.steps.yields import SAMPLE_ROWS
from llada_sft.placement import Placement
from llada_sft.training.checkpoint.changed_files import files_changed
from llada_sft.training.checkpoint.resume import Resume
from llada_sft.training.consensus import Consensus
from llada_sft.training.schedule.plan import Basis, Schedule


def build_schedule(
    config: Config,
    dataset: StepDataset,
    resume: Resume,
    placement: Placement,
    consensus: Consensus,
) -> Schedule:
    """Build the schedule from the checkpoint's, or sample rows to plan a new one."""
    # Rank 0 decides: a rank that sees another version of the hook must not use another rate.
    seen = consensus.gather(Basis.of(config, dataset.sources, placement.world_size))
    basis = cast(Basis, seen[0])
    planned = resume.planned
    changed = resume.data is not None and files_changed(
        resume.data, dataset.fingerprints(), consensus
    )
    yields = None if planned is None else planned.yields_for(basis, placement.rank, changed)
    dataset.know_yields(yields, SAMPLE_ROWS)

    def say(line: str) -> None:
        if placement.rank == 0:
            print(line, flush=True)

    ratio = 1.0
    # With slurm.elastic the global batch was the same on another number of ranks.
    if resume.world_size is not None and config.slurm.elastic is None:
        ratio = resume.world_size / placement.world_size
    return Schedule(
        config.optim,
        basis,
        step=resume.step,
        kept=planned,
        data_changed=changed,
        say=say,
        older_ratio=ratio,
    )
