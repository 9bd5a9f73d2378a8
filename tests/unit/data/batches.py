"""The examples of a micro-batch, as they were before they became its rows."""

from llada_sft.data.examples.encode import Example
from llada_sft.data.steps.collate import UnmaskedBatch


def examples_of(batch: UnmaskedBatch) -> list[Example]:
    """Return the examples of a batch, without what was added to their rows."""
    ids, masks = batch.input_ids.reshape(-1), batch.response_mask.reshape(-1)
    noisy = None if batch.noisy_ids is None else batch.noisy_ids.reshape(-1)
    corrupted = batch.corrupted or (False,) * len(batch.keys)
    examples = []
    for key, span, length, by_hook in zip(
        batch.keys, batch.spans, batch.lengths, corrupted, strict=True
    ):
        own = slice(span.start, span.start + length)
        noisy_ids = noisy[own] if noisy is not None and by_hook else None
        examples.append(Example(ids[own], masks[own], noisy_ids, False, *key))
    return examples
