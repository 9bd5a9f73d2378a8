"""`objective.pairs`: each example twice in its micro-batch, with masks of which each hides what the
other shows.

The data knows nothing of it: it makes micro-batches of half the size, and each example of these is
laid out twice when its noise is drawn. So an example is read, counted in N, and named once, but it
fills two rows of `train.micro_batch_size`, or twice its tokens of `data.max_tokens`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from llada_sft.data.steps.collate import UnmaskedBatch

_Item = TypeVar("_Item")


def each_twice(batch: UnmaskedBatch) -> UnmaskedBatch:
    """Lay out each example of a micro-batch twice, one after the other.

    A micro-batch without examples has two rows then, too: all tokens are exactly twice as many.
    """
    chosen = _packed_twice(batch) if batch.packed else _rows_twice(batch)
    return replace(
        batch,
        input_ids=_take(batch.input_ids, chosen),
        response_mask=_take(batch.response_mask, chosen),
        attention_mask=None
        if batch.attention_mask is None
        else _take(batch.attention_mask, chosen),
        keys=_items_twice(batch.keys),
        lengths=_items_twice(batch.lengths),
        noisy_ids=None if batch.noisy_ids is None else _take(batch.noisy_ids, chosen),
        corrupted=_items_twice(batch.corrupted),
        loss_weights=None if batch.loss_weights is None else _take(batch.loss_weights, chosen),
        hidden=_items_twice(batch.hidden),
    )


def _items_twice(items: Sequence[_Item]) -> tuple[_Item, ...]:
    return tuple(item for item in items for _ in range(2))


def _rows_twice(batch: UnmaskedBatch) -> NDArray[np.int64]:
    """Return the flat indices of all rows, each row twice, [2 B, L]."""
    places = np.arange(batch.input_ids.size).reshape(batch.input_ids.shape)
    return np.repeat(places, 2, axis=0)


def _packed_twice(batch: UnmaskedBatch) -> NDArray[np.int64]:
    """Return the flat indices of all examples of the one row, each twice, [1, 2 L]."""
    spans = (np.arange(span.start, span.stop) for span in batch.spans for _ in range(2))
    return np.concatenate(list(spans))[None]


def _take(values: NDArray[Any], chosen: NDArray[np.int64]) -> NDArray[Any]:
    return values.reshape(-1)[chosen]
