"""Examples -> the arrays of one micro-batch: one below the other, or one after the other.

With `end: batch_max` the tail of each response grows to the longest example of the micro-batch
and is learned, as in the official recipe: there is no padding left to hide. With a fixed tail what
is added is padding, which no token attends to and no loss counts. Packed examples share one row;
nothing is added.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llada_sft.data.examples.encode import Example
from llada_sft.data.rows.position import ExampleKey

# The length at which the attention of an example costs as much as the matrices: 6 · P = 12 · layers
# · width · L, with P parameters in the blocks. This is LLaDA-8B's (P = 6.98e9, 32 layers of width
# 4096). It only weighs micro-batches against each other.
EQUAL_TOKENS = 26_600


@dataclass(frozen=True)
class UnmaskedBatch:
    """One micro-batch before any noise. It goes through a pipe: each token is in it once.

    Attributes:
        input_ids: int64 [B, L].
        response_mask: bool [B, L].
        attention_mask: bool [B, L], or None where every token is real.
        keys: Which examples these are: B of them; packed, all that share the one row.
        lengths: Tokens of each example, without what was added to its row.
        packed: Whether the examples share one row.
        noisy_ids: int64 [B, L], as the hook has corrupted them; None if no example was.
        corrupted: Whether the hook has corrupted an example, for each; empty if none was.
        loss_weights: fp32 [B, L], what the loss of each token is multiplied by; None if all are 1.
        hidden: Tokens at the end of each example that are always masked; empty if none has any.
        block_length: Tokens of a block, if the examples are trained in blocks; 0: they are not.
    """

    input_ids: NDArray[np.int64]
    response_mask: NDArray[np.bool_]
    attention_mask: NDArray[np.bool_] | None
    keys: tuple[ExampleKey, ...]
    lengths: tuple[int, ...]
    packed: bool = False
    noisy_ids: NDArray[np.int64] | None = None
    corrupted: tuple[bool, ...] = ()
    loss_weights: NDArray[np.float32] | None = None
    hidden: tuple[int, ...] = ()
    block_length: int = 0

    @property
    def spans(self) -> list[slice]:
        """Where each example, with what was added to it, is in the flattened B · L positions."""
        width = self.input_ids.shape[1]
        lengths = self.lengths if self.packed else (width,) * len(self.keys)
        ends = np.cumsum(lengths, dtype=np.int64).tolist()
        return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]

    @property
    def num_tokens(self) -> int:
        """Tokens of the examples, without what was added to their rows, be it learned or not."""
        return sum(self.lengths)

    @property
    def work(self) -> int:
        """What the network does for it: L + L² / EQUAL_TOKENS for each row or packed example of L
        tokens, times EQUAL_TOKENS. In blocks of B tokens it is 2 L + L (L + B) / EQUAL_TOKENS: a
        noisy token and its clean copy, which both see half of the others and half of a block.
        """
        widths = [span.stop - span.start for span in self.spans]
        if not self.block_length:
            return sum(width * (EQUAL_TOKENS + width) for width in widths)
        own = 2 * EQUAL_TOKENS + self.block_length
        return sum(width * (own + width) for width in widths)


def pairs_in_blocks(length: int, block_length: int) -> int:
    """Return how many pairs of query and key there are in [noisy ; clean] of an example.

    In both halves, a position sees as many keys as there are up to the end of its block.

    Args:
        length: Tokens of the example, L. L² are the pairs of full attention.
        block_length: Tokens of a block; the last one may have fewer.
    """
    whole, rest = divmod(length, block_length)
    return block_length**2 * whole * (whole + 1) + 2 * rest * length


def pad(examples: Sequence[Example], pad_token_id: int) -> UnmaskedBatch:
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
    attention_mask = None if real.all() else real
    return _batch(examples, input_ids, response_mask, attention_mask, packed=False)


def pack(examples: Sequence[Example]) -> UnmaskedBatch:
    """Put examples, at least one, after one another."""
    input_ids = np.concatenate([example.input_ids for example in examples])[None]
    response_mask = np.concatenate([example.response_mask for example in examples])[None]
    return _batch(examples, input_ids, response_mask, attention_mask=None, packed=True)


def _batch(
    examples: Sequence[Example],
    input_ids: NDArray[np.int64],
    response_mask: NDArray[np.bool_],
    attention_mask: NDArray[np.bool_] | None,
    packed: bool,
) -> UnmaskedBatch:
    batch = UnmaskedBatch(
        input_ids=input_ids,
        response_mask=response_mask,
        attention_mask=attention_mask,
        keys=tuple(example.key for example in examples),
        lengths=tuple(len(example.input_ids) for example in examples),
        packed=packed,
        block_length=max((example.block_length for example in examples), default=0),
    )
    if any(example.hidden for example in examples):
        batch = replace(batch, hidden=tuple(example.hidden for example in examples))
    if any(example.loss_weights is not None for example in examples):
        batch = replace(batch, loss_weights=_loss_weights(examples, batch))
    corrupted = tuple(example.noisy_ids is not None for example in examples)
    if not any(corrupted):
        return batch
    noisy_ids = input_ids.flatten()
    for example, span in zip(examples, batch.spans, strict=True):
        if example.noisy_ids is not None:
            noisy_ids[span][: len(example.noisy_ids)] = example.noisy_ids
    return replace(batch, noisy_ids=noisy_ids.reshape(input_ids.shape), corrupted=corrupted)


def _loss_weights(examples: Sequence[Example], batch: UnmaskedBatch) -> NDArray[np.float32]:
    """Lay the weights of examples out; what is added to a response weighs as its last token."""
    weights = np.ones(batch.input_ids.size, np.float32)
    for example, span in zip(examples, batch.spans, strict=True):
        if example.loss_weights is not None:
            own = weights[span]
            own[: len(example.loss_weights)] = example.loss_weights
            own[len(example.loss_weights) :] = example.loss_weights[-1]
    return weights.reshape(batch.input_ids.shape)
