"""Which examples share a micro-batch: in the order of reading, or packed by length.

`packs` reads a few examples ahead. The one that waited longest opens a micro-batch; then, as long
as one fits, the longest that does comes next, and another is read in its place. So short examples
wait for the ends of micro-batches, and hardly any room is left there.

Examples that wait were read, but are not trained: they belong to the position of a step
(`position.with_waiting`), and are the first to be read when a run resumes from it. Whatever groups
the examples shares its list of waiting ones with the caller, which reads it after each group.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, islice

from llada_sft.config.schema import DataConfig
from llada_sft.data.examples.encode import Example
from llada_sft.data.steps.collate import UnmaskedBatch, pack, pad


def micro_batches(
    config: DataConfig,
    micro_batch_size: int,
    pad_token_id: int,
    waiting: list[Example],
    new: Iterator[Example],
) -> Iterator[UnmaskedBatch]:
    """Divide examples into micro-batches, by the config's `batching`."""
    if config.batching == "padded":
        return (pad(group, pad_token_id) for group in in_order(waiting, new, micro_batch_size))
    assert config.max_tokens is not None
    return map(pack, packs(waiting, new, config.max_tokens, config.pack_buffer))


def in_order(
    waiting: list[Example], new: Iterator[Example], micro_batch_size: int
) -> Iterator[list[Example]]:
    """Yield groups of `micro_batch_size` examples; `waiting` is used up first."""
    examples = chain((waiting.pop(0) for _ in range(len(waiting))), new)
    while group := list(islice(examples, micro_batch_size)):
        yield group


def packs(
    waiting: list[Example], new: Iterator[Example], max_tokens: int, num_waiting: int
) -> Iterator[list[Example]]:
    """Yield groups of at most `max_tokens` tokens, as full as can be.

    What comes out depends on `waiting` and `new` alone, and at each yield `waiting` is what goes
    into the groups to come before any other example of `new`.

    Args:
        waiting: Examples that were read before, in that order; none is longer than `max_tokens`.
            It is changed in place.
        new: The examples that follow.
        max_tokens: Tokens of a group.
        num_waiting: Examples to read ahead.
    """

    def refill() -> None:
        waiting.extend(islice(new, max(0, num_waiting - len(waiting))))

    refill()
    while waiting:
        group: list[Example] = []
        room = max_tokens
        chosen: int | None = 0
        while chosen is not None:
            group.append(waiting.pop(chosen))
            room -= len(group[-1].input_ids)
            refill()
            chosen = _longest_that_fits(waiting, room)
        yield group


def _longest_that_fits(waiting: Sequence[Example], room: int) -> int | None:
    """Return which example it is; of equally long ones the one that waited longer."""
    lengths = [len(example.input_ids) for example in waiting]
    longest = max((length for length in lengths if length <= room), default=None)
    return None if longest is None else lengths.index(longest)
