"""The first epoch of a rank: how many steps, examples and tokens the training will make of it.

`PlanEpoch` runs the real `StepDataset` of a rank, but on examples that have nothing but their
lengths, so that no row is encoded twice: the order, the packing, the growing tail and the counts
are those of the training. `estimate` has only a sample of the rows to go by.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from llada_sft.check.reading import Rows, Worker
from llada_sft.config.sections.data import DataConfig
from llada_sft.data.examples.encode import Encoded, Example
from llada_sft.data.examples.quarantine import BadRowError, Reason
from llada_sft.data.examples.row_counts import GOOD_ROW
from llada_sft.data.rows.position import ExampleKey
from llada_sft.data.rows.row import Row
from llada_sft.data.sources import Source
from llada_sft.data.steps.collate import UnmaskedBatch
from llada_sft.data.steps.dataset import StepDataset
from llada_sft.data.steps.local_step import StepSize
from llada_sft.data.steps.packing import micro_batches
from llada_sft.errors import DataError


@dataclass(frozen=True)
class RankEpoch:
    """What one rank does in the first epoch.

    Attributes:
        rows, examples, steps, tokens: Of the rank; tokens without what is added to rows. A row
            counts as often as it is read.
        positions: All tokens that its own steps run on.
        response_tokens: Those of all answers, tails included.
        eos_tokens: Those of the tails.
        void_tokens: Void tokens after all answers.
        eos_weight: Sum over the examples of the tail's share of its response.
        stopped_by: Why the training would stop here for bad rows, if it would.
    """

    rows: int = 0
    examples: int = 0
    steps: int = 0
    tokens: int = 0
    positions: int = 0
    response_tokens: int = 0
    eos_tokens: int = 0
    void_tokens: int = 0
    eos_weight: float = 0.0
    stopped_by: str | None = None


@dataclass
class _Totals:
    """Sums over micro-batches."""

    examples: int = 0
    tokens: int = 0
    positions: int = 0
    response_tokens: int = 0
    eos_tokens: int = 0
    void_tokens: int = 0
    eos_weight: float = 0.0
    batches: int = 0

    def add(self, batch: UnmaskedBatch, answer: Callable[[ExampleKey], int]) -> None:
        """Add a micro-batch; `answer` counts an example's response tokens without the tail."""
        self.batches += 1
        self.tokens += batch.num_tokens
        self.positions += int(batch.input_ids.size)
        self.void_tokens += sum(hidden - 1 for hidden in batch.hidden if hidden)
        mask = batch.response_mask.reshape(-1)
        for key, span in zip(batch.keys, batch.spans, strict=True):
            length = int(np.count_nonzero(mask[span]))
            num_eos = length - answer(key)
            self.examples += 1
            self.response_tokens += length
            self.eos_tokens += num_eos
            self.eos_weight += num_eos / length


class _Lengths:
    """Looks examples up that were encoded before.

    Args:
        files: The rows of each file, by the file's name.
        max_length: The longest that an example can be.
        config: The data section.
    """

    def __init__(self, files: Mapping[str, Rows], config: DataConfig) -> None:
        self._files = files
        self._first = {
            name: np.concatenate([[0], np.cumsum(rows.num_examples, dtype=np.int64)])
            for name, rows in files.items()
        }
        longest = max((int(rows.lengths.max(initial=0)) for rows in files.values()), default=0)
        self._zeros = np.zeros(longest, np.int64)
        # A view of it is a prompt and its response.
        self._masks = np.repeat(np.array([False, True]), longest)
        self._middle = longest
        self._grows, self._hides = config.end == "batch_max", config.end == "void"

    def of_row(self, row: Row, epoch: int) -> Encoded:
        """Return the examples of a row; those of later epochs are taken for the first's.

        Raises:
            BadRowError: It is a bad one.
        """
        rows, number = self._files[row.file], self._number(row.file, row.line)
        if rows.bad.item(number):
            reason: Reason = get_args(Reason)[0]
            raise BadRowError(row, reason, "bad")
        first = self._first[row.file]
        start, end = first.item(number), first.item(number + 1)
        examples = [
            self.example(rows, index, row.file, row.line, index - start)
            for index in range(start, end)
        ]
        return Encoded(examples, GOOD_ROW)

    def answer(self, key: ExampleKey) -> int:
        """Count the response tokens of an example without its tail."""
        rows = self._files[key.file]
        index = self._first[key.file].item(self._number(key.file, key.line)) + key.part
        return rows.responses.item(index) - rows.tails.item(index)

    def _number(self, file: str, line: int) -> int:
        """Return which row of a file is at a line."""
        lines = self._files[file].lines
        # Without blank lines there is no need to search.
        if line <= len(lines) and lines.item(line - 1) == line:
            return line - 1
        return int(np.searchsorted(lines, np.uint64(line)))

    def example(self, rows: Rows, index: int, file: str, line: int, part: int) -> Example:
        """Make an example of the right lengths."""
        length, response = rows.lengths.item(index), rows.responses.item(index)
        tail = rows.tails.item(index)
        # Of the mask, only how many are true counts: void tokens are before the response here.
        begin = self._middle + response - length
        return Example(
            input_ids=self._zeros[:length],
            response_mask=self._masks[begin : begin + length],
            noisy_ids=None,
            # An example without a tail is one that the hook corrupts itself.
            grows=self._grows and tail > 0,
            hidden=rows.voids.item(index) + tail if self._hides else 0,
            file=file,
            line=line,
            part=part,
        )


@dataclass(frozen=True)
class PlanEpoch:
    """Go through the first epoch of a rank; of named sources, through all of theirs.

    Args:
        sources: The rank's part of each.
        rows: What is known of the rows of each shard, by its name.
        seed: `run.seed`.
        size: Micro-batch size and accumulation.
    """

    sources: Sequence[Source]
    rows: Mapping[str, Rows]
    seed: int
    size: StepSize

    def __call__(self, worker: Worker) -> RankEpoch:
        lengths = _Lengths(self.rows, worker.config)
        limit = worker.config.max_bad_fraction
        try:
            return self._go(worker, lengths, limit)
        except DataError:
            # Of the messages of bad rows nothing was kept; the training's own would have them.
            pass
        bad = sum(int(rows.bad.sum()) for rows in self.rows.values())
        reason = f"{bad:,} of its {sum(map(len, self.rows.values())):,} rows are bad"
        return replace(self._go(worker, lengths, 1.0), stopped_by=reason)

    def _go(self, worker: Worker, lengths: _Lengths, max_bad_fraction: float) -> RankEpoch:
        steps = StepDataset(
            worker.config.model_copy(update={"max_bad_fraction": max_bad_fraction}),
            worker.tokenizer_dir,
            worker.ids,
            # Named sources make one epoch of theirs; otherwise the run's first is enough.
            sources=[
                source if source.name else replace(source, epochs=1) for source in self.sources
            ],
            seed=self.seed,
            size=self.size,
            encode=lengths.of_row,
        )
        totals, num_steps, num_rows = _Totals(), 0, 0
        for step in steps:
            num_rows = step.epoch_rows
            if step.end_of_epoch:
                continue
            num_steps += 1
            for batch in step.micro_batches:
                if batch.keys:
                    totals.add(batch, lengths.answer)
                else:
                    totals.positions += int(batch.input_ids.size)
        return _rank_epoch(totals, num_rows, num_steps)


def _rank_epoch(totals: _Totals, rows: int, steps: int) -> RankEpoch:
    return RankEpoch(
        rows=rows,
        examples=totals.examples,
        steps=steps,
        tokens=totals.tokens,
        positions=totals.positions,
        response_tokens=totals.response_tokens,
        eos_tokens=totals.eos_tokens,
        void_tokens=totals.void_tokens,
        eos_weight=totals.eos_weight,
    )


def estimate(
    config: DataConfig, size: StepSize, rows: Sequence[Sequence[Rows]], num_rows: Sequence[int]
) -> list[RankEpoch]:
    """Estimate the first epoch of each rank from a sample of its rows.

    The sampled rows of all ranks are divided into micro-batches together, in a random order; each
    rank then has the share of its rows, with the lengths of its own sample if it has one.

    Args:
        config: The data section.
        size: Micro-batch size and accumulation.
        rows: The sampled rows of each rank, shard by shard; those of a source as often as it has
            epochs.
        num_rows: All rows of each rank, likewise.
    """
    files = {str(number): read for number, read in enumerate(_flat(rows))}
    lengths = _Lengths(files, config)
    examples = [
        lengths.example(read, index, name, 0, index)
        for name, read in files.items()
        for index in range(len(read.lengths))
    ]
    order = np.random.Generator(np.random.Philox(0)).permutation(len(examples))
    answers = {name: read.responses - read.tails for name, read in files.items()}
    totals = _Totals()
    shuffled = (examples[number] for number in order.tolist())
    for batch in micro_batches(config, size.micro_batch_size, 0, [], shuffled):
        totals.add(batch, lambda key: answers[key.file].item(key.part))
    if not totals.examples:
        return [RankEpoch(rows=count) for count in num_rows]
    sampled = sum(map(len, files.values()))
    mean = sum(int(read.lengths.sum()) for read in files.values()) / sampled
    return [
        _estimated(
            totals,
            rows=count,
            sampled=sampled,
            longer=_mean(sample, mean) / mean,
            config=config,
            size=size,
        )
        for sample, count in zip(rows, num_rows, strict=True)
    ]


def _estimated(
    totals: _Totals, rows: int, sampled: int, longer: float, config: DataConfig, size: StepSize
) -> RankEpoch:
    """Scale the sample to a rank; `longer`: its mean row over that of all ranks."""
    scale = rows / sampled
    # Only packed, longer examples make more micro-batches.
    batches = totals.batches * scale * (longer if config.batching == "packed" else 1.0)
    return RankEpoch(
        rows=rows,
        examples=round(totals.examples * scale),
        steps=-(-round(batches) // size.accumulate_grad_batches),
        tokens=round(totals.tokens * scale * longer),
        positions=round(totals.positions * scale * longer),
        response_tokens=round(totals.response_tokens * scale * longer),
        eos_tokens=round(totals.eos_tokens * scale * longer),
        void_tokens=round(totals.void_tokens * scale),
        eos_weight=totals.eos_weight * scale,
    )


def _mean(sample: Sequence[Rows], otherwise: float) -> float:
    """Tokens of a row of a rank."""
    num_rows = sum(map(len, sample))
    if not num_rows:
        return otherwise
    return sum(int(read.lengths.sum()) for read in sample) / num_rows


def _flat(rows: Sequence[Sequence[Rows]]) -> list[Rows]:
    return [read for of_rank in rows for read in of_rank]
