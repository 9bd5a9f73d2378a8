"""One rank's part of an optimizer step, before any noise."""

from dataclasses import dataclass, field

from llada_sft.data.examples.row_counts import RowCounts
from llada_sft.data.rows.position import Positions
from llada_sft.data.steps.collate import UnmaskedBatch
from llada_sft.data.steps.yields import RowYield


@dataclass(frozen=True)
class LocalStep:
    """What one rank gives to one optimizer step.

    Attributes:
        micro_batches: Always `accumulate_grad_batches` of them; some may be empty of examples.
        epoch: The epoch that the rows belong to, from 0.
        positions: What is done of a file once this step is trained, and what waits to be packed:
            for each file of the rank of which that differs from the step before. The first step
            has all files.
        end_of_epoch: There are no rows left; the step holds none.
        rows: What became of the rows that were read since the step before.
        rows_done, epoch_rows: Rows of the epoch that are done, and that there are on this rank;
            where sources are mixed, of all of their epochs.
        by_source: What each of these gave to the step, in the unit of `data.mix_by`.
        steps_left: Steps of the epoch that this rank makes after this one: an estimate, which is 0
            if and only if no example follows.
        epoch_steps: Steps that a whole epoch makes on this rank, estimated; 0 where sources are
            mixed, which have one epoch together.
        yields: For each source, what its rows make: the base of the estimates.
        estimated: Whether the number of steps cannot be known from the rows alone.
    """

    micro_batches: tuple[UnmaskedBatch, ...]
    epoch: int
    positions: Positions
    end_of_epoch: bool = False
    rows: RowCounts = field(default_factory=RowCounts)
    rows_done: int = 0
    epoch_rows: int = 0
    by_source: tuple[int, ...] = ()
    steps_left: int = 0
    epoch_steps: int = 0
    yields: tuple[RowYield, ...] = ()
    estimated: bool = False

    @property
    def num_examples(self) -> int:
        return sum(len(batch.keys) for batch in self.micro_batches)

    @property
    def num_response_tokens(self) -> int:
        return sum(int(batch.response_mask.sum()) for batch in self.micro_batches)

    @property
    def num_tokens(self) -> int:
        return sum(batch.num_tokens for batch in self.micro_batches if batch.keys)

    @property
    def num_squares(self) -> int:
        """The sum of the squares of the examples' lengths."""
        return sum(length**2 for batch in self.micro_batches for length in batch.lengths)

    @property
    def work(self) -> int:
        return sum(batch.work for batch in self.micro_batches)

    @property
    def num_positions(self) -> int:
        """All tokens that the network runs on, padding and empty micro-batches among them."""
        return sum(int(batch.input_ids.size) for batch in self.micro_batches)


@dataclass(frozen=True)
class StepSize:
    micro_batch_size: int
    accumulate_grad_batches: int

    @property
    def examples(self) -> int:
        return self.micro_batch_size * self.accumulate_grad_batches
