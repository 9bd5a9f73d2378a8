"""How many steps rows make, estimated from what a sample of them made.

A hook may make several examples of a row or none, and packed micro-batches are measured in tokens:
the number of rows does not determine the number of steps. A sample of the rows is encoded once,
when a training starts; its result, a `RowYield` for each source, is kept in the checkpoint. If
each sampled row made one example and micro-batches are padded, the estimate counts as exact.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from llada_sft.data.examples.encode import Encode
from llada_sft.data.rows.stream import RowStream
from llada_sft.errors import DataError

SAMPLE_ROWS = 512


class RowYield(NamedTuple):
    """What a number of rows of a source made: examples, and the tokens of these."""

    rows: int
    examples: int
    tokens: int


class RowsLeft(NamedTuple):
    """What is left of a source: rows, and the examples that the first of them gave already."""

    rows: int
    given_examples: int = 0


def sample_yield(stream: RowStream, encode: Encode, num_rows: int) -> RowYield | None:
    """Encode a sample of rows from all files; return None if they make no example at all."""
    rows = examples = tokens = 0
    for row in stream.sample(num_rows):
        rows += 1
        # The training reports a row that cannot be used.
        with suppress(DataError):
            lengths = [len(example.input_ids) for example in encode(row, 0).examples]
            examples += len(lengths)
            tokens += sum(lengths)
    return RowYield(rows, examples, tokens) if examples else None


@dataclass(frozen=True)
class StepEstimate:
    """Turns rows into steps.

    Attributes:
        yields: Of each source.
        examples_per_step: Of a rank; for padded micro-batches.
        tokens_per_step: Of a rank; None for padded micro-batches.
    """

    yields: tuple[RowYield, ...]
    examples_per_step: int
    tokens_per_step: int | None = None

    @property
    def is_exact(self) -> bool:
        """Return whether the number of steps is known from the rows alone."""
        one_each = all(each.examples == each.rows for each in self.yields)
        return one_each and self.tokens_per_step is None

    def steps(self, left: Sequence[RowsLeft], waiting: int = 0) -> int:
        """Estimate the steps that rows will make.

        Args:
            left: The rows of each source.
            waiting: Examples that were read, but are not trained.
        """
        # Whole numbers, of a common unit: each step of a training asks, and fractions are slow.
        # Of each source the examples that follow, times its `rows`.
        examples = [
            max(0, each.examples * of.rows - of.given_examples * each.rows)
            for each, of in zip(self.yields, left, strict=True)
        ]
        if self.tokens_per_step is None:
            unit = math.lcm(*(each.rows for each in self.yields))
            num_examples = waiting * unit + sum(
                count * (unit // each.rows)
                for count, each in zip(examples, self.yields, strict=True)
            )
            return -(-num_examples // (self.examples_per_step * unit))
        all_examples = sum(each.examples for each in self.yields)
        unit = math.lcm(all_examples, *(each.rows * each.examples for each in self.yields))
        mean = sum(each.tokens for each in self.yields) * (unit // all_examples)
        tokens = waiting * mean + sum(
            count * each.tokens * (unit // (each.rows * each.examples))
            for count, each in zip(examples, self.yields, strict=True)
        )
        return -(-tokens // (self.tokens_per_step * unit))
