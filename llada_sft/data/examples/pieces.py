"""`data.on_too_long: split`: a document -> pieces that fit, and together are all of it.

A document is an example without a prompt: every token is learned, but for a BOS before them. All
its pieces are `max_length` long, but the last one, which ends with the document and gets its tail.
`data.random_length` gives some pieces a random length instead, as in LLaDA's pre-training, so that
the network sees short inputs, too; the next piece continues where such a piece ends. No token is
lost or learned twice.

Source: LLaDA (arXiv 2502.09992), section 2.2: 1 % of the pre-training data has a length drawn
uniformly from 1 to 4096.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from numpy.typing import NDArray

from llada_sft.keys import hashed

Fields = Mapping[str, NDArray[Any]]


class Piece(NamedTuple):
    """A part of an example that is one itself; `ends`: whether it ends as the whole does."""

    fields: Fields
    ends: bool


def is_document(fields: Fields) -> bool:
    """Return whether all tokens are learned, but for a first one.

    What the hook has corrupted belongs together: it is not one.
    """
    mask = fields["response_mask"]
    return "noisy_ids" not in fields and bool(mask[1:].all()) and bool(mask[-1])


def split_document(
    fields: Fields, max_length: int, tail: int, random_length: float, key: int
) -> Iterator[Piece]:
    """Yield the pieces of a document.

    Args:
        fields: The lists of the example, of one length.
        max_length: The most tokens of a piece, the tail of the last one included.
        tail: Tokens that are added to the last piece, fewer than `max_length`.
        random_length: The share of pieces that have a random length.
        key: Keys which these are, and the lengths.
    """
    length, start = len(fields["input_ids"]), 0
    # A piece without a learned token has no loss.
    least = 1 + int(not fields["response_mask"][0])
    while True:
        left = length - start
        size = _size(max_length, random_length, hashed("piece", key, start))
        if size >= left + tail or left <= least:
            yield Piece({name: values[start:] for name, values in fields.items()}, ends=True)
            return
        # The last piece has a token of the document, not its tail alone.
        end = start + min(max(size, least), left - 1)
        yield Piece({name: values[start:end] for name, values in fields.items()}, ends=False)
        start, least = end, 1


def _size(max_length: int, random_length: float, key: int) -> int:
    """Return the length of a piece if the document is long enough."""
    if hashed("is random", key) >= random_length * 2**64:
        return max_length
    return 1 + hashed("length", key) % max_length
