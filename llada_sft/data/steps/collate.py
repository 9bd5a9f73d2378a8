"""Examples -> the tensors of one micro-batch: one below the other, or one behind the other.

With `eos_tail: batch_max` the tail of each response grows to the longest example of the micro-batch
and is learned, as in the official recipe: there is no padding left to hide. With a fixed tail what
is added is padding, which no token attends to and no loss counts. Packed examples share one row;
nothing is added.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llada_sft.data.examples.encode import Example


@dataclass(frozen=True)
class CleanBatch:
    """One micro-batch before any noise.

    Attributes:
        input_ids: int64 [B, L].
        response_mask: bool [B, L].
        attention_mask: bool [B, L], or None where every token is real.
        examples: The B examples; packed, all that share the one row.
        lengths: Tokens of each example of the one row, or None where each has a row of its own.
    """

    input_ids: NDArray[np.int64]
    response_mask: NDArray[np.bool_]
    attention_mask: NDArray[np.bool_] | None
    examples: tuple[Example, ...]
    lengths: tuple[int, ...] | None = None

    @property
    def spans(self) -> list[slice]:
        """Where each example stands in the flattened B · L positions."""
        width = self.input_ids.shape[1]
        lengths = self.lengths or (width,) * len(self.examples)
        ends = np.cumsum(lengths, dtype=np.int64).tolist()
        return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]

    @property
    def num_tokens(self) -> int:
        real = self.attention_mask
        return int(self.input_ids.size if real is None else real.sum())


def pad(examples: Sequence[Example], pad_token_id: int) -> CleanBatch:
    """Bring examples to one length; `pad_token_id` is LLaDA's EOS.

    No example at all gives a micro-batch of one token that counts for nothing, so that each rank
    runs the network equally often.
    """
    length = max((len(example.input_ids) for example in examples), default=1)
    shape = (max(len(examples), 1), length)
    input_ids = np.full(shape, pad_token_id, np.int64)
    response_mask = np.zeros(shape, np.bool_)
    real = np.ones(shape, np.bool_)
    for row, example in enumerate(examples):
        used = len(example.input_ids)
        input_ids[row, :used] = example.input_ids
        response_mask[row, :used] = example.response_mask
        response_mask[row, used:] = example.grows
        real[row, used:] = example.grows
    return CleanBatch(input_ids, response_mask, None if real.all() else real, tuple(examples))


def pack(examples: Sequence[Example]) -> CleanBatch:
    """Put examples, at least one, behind one another."""
    return CleanBatch(
        input_ids=np.concatenate([example.input_ids for example in examples])[None],
        response_mask=np.concatenate([example.response_mask for example in examples])[None],
        attention_mask=None,
        examples=tuple(examples),
        lengths=tuple(len(example.input_ids) for example in examples),
    )
