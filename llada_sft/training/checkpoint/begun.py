"""A checkpoint that was begun: what belongs to its step, kept until its shards are written.

The training goes on meanwhile, so nothing of the manifest or of the data's position may be read
from it later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from llada_sft.data.rows.position import Positions
from llada_sft.data.steps.yields import RowYield
from llada_sft.training.checkpoint.shard_writer import ShardWriter
from llada_sft.training.log.step_journal import versions
from llada_sft.training.masks.level_losses import LevelState
from llada_sft.training.nonfinite import SkippedSteps
from llada_sft.training.schedule.plan import Planned
from llada_sft.training.validation.best import ValidationState

Yields = tuple[RowYield, ...]


@dataclass(frozen=True)
class Begun:
    """A checkpoint whose shards are being written, by this rank's `writer`.

    Attributes:
        step: Its step.
        last: Whether no other follows it.
        background: Whether a thread writes it while the training goes on.
        writer: Writes this rank's shards.
        epoch, positions, yields: Where this rank's data was, and what its rows had made.
        skipped: Steps that were skipped until then.
        planned, total_steps: The schedule, and the steps of the whole training, if known.
        levels: This rank's losses by noise level, if levels are drawn by them.
        adapters: What is known of the adapters that are trained; None: the network is.
        validation: The best validation so far.
    """

    step: int
    last: bool
    background: bool
    writer: ShardWriter
    epoch: int
    positions: Positions
    yields: Yields
    skipped: SkippedSteps
    planned: Planned | None
    total_steps: int | None
    levels: LevelState | None = None
    adapters: Mapping[str, object] | None = None
    validation: ValidationState = ValidationState()  # noqa: RUF009 (frozen)

    def manifest(
        self, yields: list[Yields], levels: Sequence[LevelState | None] = ()
    ) -> dict[str, Any]:
        """Return what checkpoint.json says, but for the files.

        Args:
            yields: Of each rank.
            levels: Of each rank.
        """
        content = {
            "step": self.step,
            "world_size": len(yields),
            "versions": versions(),
            "skipped_steps": asdict(self.skipped),
            "validation": self.validation.to_json(),
        }
        if (of_all := LevelState.together(levels)) is not None:
            content["levels"] = of_all.to_json()
        if self.adapters is not None:
            content["adapters"] = dict(self.adapters)
        if self.planned is not None:
            content["schedule"] = replace(self.planned, yields=yields).to_json()
        return content
