"""Examples -> the padded tensors of one micro-batch.

With `eos_tail: batch_max` the tail of each response grows to the longest example of the micro-batch
and is learned, as in the official recipe: there is no padding left to hide. With a fixed tail what
is added is padding, which no token attends to and no loss counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llada_sft.data.encode import Example


@dataclass(frozen=True)
class PaddedBatch:
    """One micro-batch before any noise.

    Attributes:
        input_ids: int64 [B, L].
        response_mask: bool [B, L].
        attention_mask: bool [B, L], or None where every token is real.
        examples: The B examples.
    """

    input_ids: NDArray[np.int64]
    response_mask: NDArray[np.bool_]
    attention_mask: NDArray[np.bool_] | None
    examples: tuple[Example, ...]

    @property
    def num_tokens(self) -> int:
        real = self.attention_mask
        return int(self.input_ids.size if real is None else real.sum())


def pad(examples: Sequence[Example], pad_token_id: int) -> PaddedBatch:
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
    return PaddedBatch(input_ids, response_mask, None if real.all() else real, tuple(examples))
