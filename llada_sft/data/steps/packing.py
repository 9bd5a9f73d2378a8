"""Which examples share a micro-batch: in the order of reading, packed, or of similar length.

`packs` reads a few examples ahead. The one that waited longest opens a micro-batch; then, as long
as one fits, the longest that does comes next, and another is read in its place. So short examples
wait for the ends of micro-batches, and hardly any room is left there.

`of_similar_length` reads ahead, too, for padded micro-batches: those nearest in length join the one
that waited longest. No example waits for ever, for each micro-batch takes the oldest.

Examples that wait were read, but are not trained: they belong to the position of a step
(`position.with_waiting`), and are the first to be read when a run resumes from it. Whatever groups
the examples shares its list of waiting ones with the caller, which reads it after each group.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, islice

from llada_sft.config.sections.data import DataConfig
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
        groups = (
            of_similar_length(waiting, new, micro_batch_size, config.pack_buffer)
            if config.group_by_length
            else in_order(waiting, new, micro_batch_size)
        )
        return (pad(group, pad_token_id) for group in groups)
    assert config.max_tokens is not None
    return map(pack, packs(waiting, new, config.max_tokens, config.pack_buffer))


def in_order(
    waiting: list[Example], new: Iterator[Example], micro_batch_size: int
) -> Iterator[list[Example]]:
    """Yield groups of `micro_batch_size` examples; `waiting` is used up first."""
    examples = chain((waiting.pop(0) for _ in range(len(waiting))), new)
    while group := list(islice(examples, micro_batch_size)):
        yield group


def of_similar_length(
    waiting: list[Example], new: Iterator[Example], micro_batch_size: int, num_waiting: int
) -> Iterator[list[Example]]:
    """Yield groups of `micro_batch_size` examples that need little padding.

    What comes out depends on `waiting` and `new` alone, and at each yield `waiting` is what goes
    into the groups to come before any other example of `new`.

    Args:
        waiting: Examples that were read before, in that order. It is changed in place.
        new: The examples that follow.
        micro_batch_size: Examples of a group; the last one may have fewer.
        num_waiting: Examples to choose a group from, at least `micro_batch_size`.
    """
    num_waiting = max(num_waiting, micro_batch_size)
    while True:
        waiting.extend(islice(new, max(0, num_waiting - len(waiting))))
        if not waiting:
            return
        lengths = [len(example.input_ids) for example in waiting]
        # Sorting is stable: of equally near ones, those that waited longer.
        nearest = sorted(range(len(waiting)), key=lambda one: abs(lengths[one] - lengths[0]))
        chosen = set(nearest[:micro_batch_size])
        group = [example for one, example in enumerate(waiting) if one in chosen]
        waiting[:] = [example for one, example in enumerate(waiting) if one not in chosen]
        yield group


def costliest_first(batches: Sequence[UnmaskedBatch]) -> tuple[UnmaskedBatch, ...]:
    """Sort the micro-batches of a step, so that those that ranks run together cost about the same.

    Under ZeRO-3 the ranks wait for one another in each micro-batch. A rank does not see the
    micro-batches of the others, but the k-th of each rank are alike if all have sorted theirs.
    """
    return tuple(sorted(batches, key=lambda batch: -batch.work))


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

    lengths = [len(example.input_ids) for example in waiting]

    def refill() -> None:
        waiting.extend(islice(new, max(0, num_waiting - len(waiting))))
        lengths.extend(len(example.input_ids) for example in waiting[len(lengths) :])

    refill()
    while waiting:
        group: list[Example] = []
        room = max_tokens
        chosen: int | None = 0
        while chosen is not None:
            group.append(waiting.pop(chosen))
            room -= lengths.pop(chosen)
            refill()
            chosen = _longest_that_fits(lengths, room)
        yield group


def _longest_that_fits(lengths: Sequence[int], room: int) -> int | None:
    """Return which example it is; of equally long ones the one that waited longer."""
    longest = max([length for length in lengths if length <= room], default=None)
    return None if longest is None else lengths.index(longest)
