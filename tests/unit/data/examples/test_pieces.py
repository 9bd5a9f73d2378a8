"""Documents in pieces: every token once, every piece one that can be learned."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llada_sft.config.sections.data import DataConfig
from llada_sft.data.examples.encode import Example
from llada_sft.data.examples.hook import examples_key
from llada_sft.data.examples.pieces import is_document, split_document
from tests.unit.data.examples.test_encode import EOS, encode, encoder, item, row


def document(length: int, bos: bool = False) -> dict[str, Any]:
    mask = np.ones(length, np.bool_)
    mask[0] = not bos
    return {"input_ids": np.arange(length), "response_mask": mask}


@given(
    length=st.integers(2, 200),
    max_length=st.integers(3, 60),
    tail=st.integers(1, 5),
    random_length=st.sampled_from([0.0, 0.3, 1.0]),
    bos=st.booleans(),
    key=st.integers(0, 2**64 - 1),
)
def test_the_pieces_are_the_document(
    length: int, max_length: int, tail: int, random_length: float, bos: bool, key: int
) -> None:
    tail = min(tail, max_length - 2)
    whole = document(length, bos)
    pieces = list(split_document(whole, max_length, tail, random_length, key))
    for name in ("input_ids", "response_mask"):
        joined = np.concatenate([piece.fields[name] for piece in pieces])
        assert joined.tolist() == whole[name].tolist()
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    for piece in pieces:
        size = len(piece.fields["input_ids"]) + tail * piece.ends
        assert size <= max_length
        assert piece.fields["response_mask"].any()
        if random_length == 0 and not piece.ends:
            # Full, but where the last one would have had nothing but its tail.
            assert size == max_length or piece is pieces[-2]
    again = list(split_document(whole, max_length, tail, random_length, key))
    assert [len(piece.fields["input_ids"]) for piece in again] == [
        len(piece.fields["input_ids"]) for piece in pieces
    ]


def sizes(random_length: float, count: int) -> Iterator[int]:
    """Lengths of the first pieces of long documents."""
    for key in range(count):
        first = next(split_document(document(500), 100, 1, random_length, key))
        yield len(first.fields["input_ids"])


def test_a_share_of_the_pieces_has_a_uniform_length() -> None:
    assert set(sizes(0.0, 50)) == {100}
    found = list(sizes(0.25, 4000))
    short = [size for size in found if size < 100]
    # A hundredth of the random ones is 100 long.
    assert len(short) / 4000 == pytest.approx(0.25 * 0.99, abs=0.03)
    counts = np.bincount(list(sizes(1.0, 4000)), minlength=101)[1:].reshape(4, 25).sum(axis=1)
    assert (counts / 4000).tolist() == pytest.approx([0.25] * 4, abs=0.03)


def test_what_is_a_document() -> None:
    mask = {"input_ids": np.arange(3), "response_mask": np.array([True, True, True])}
    assert is_document(mask)
    assert is_document(mask | {"response_mask": np.array([False, True, True])})
    assert not is_document(mask | {"response_mask": np.array([False, False, True])})
    assert not is_document(mask | {"response_mask": np.array([True, True, False])})
    assert not is_document(mask | {"noisy_ids": np.arange(3)})


def learned(examples: list[Example]) -> list[list[int]]:
    return [example.input_ids[example.response_mask].tolist() for example in examples]


def test_a_long_document_becomes_examples_and_the_last_has_the_tail() -> None:
    examples = encode(item(0, 7), max_length=3, on_too_long="split", end=2)
    assert learned(examples) == [[2, 3, 4], [5, 6, 7], [8, EOS, EOS]]
    assert [example.part for example in examples] == [0, 1, 2]
    assert [example.tail for example in examples] == [0, 0, 2]
    # With 6 tokens the tail would be alone.
    examples = encode(item(0, 6), max_length=3, on_too_long="split", end=1)
    assert learned(examples) == [[2, 3, 4], [5, 6], [7, EOS]]


def test_bos_is_in_the_first_piece_and_not_learned() -> None:
    examples = encode(item(1, 5), max_length=3, on_too_long="split")
    assert [example.input_ids.tolist() for example in examples] == [[1, 2, 3], [4, 5], [6, EOS]]
    assert learned(examples) == [[2, 3], [4, 5], [6, EOS]]


def test_only_the_last_piece_grows() -> None:
    examples = encode(item(0, 4), max_length=3, on_too_long="split", end="batch_max")
    assert [example.grows for example in examples] == [False, True]


def test_an_answer_to_a_prompt_is_cut_as_by_clip_response() -> None:
    returned = item(3, 6)
    both = [encode(returned, max_length=5, on_too_long=p) for p in ("split", "clip_response")]
    for split, clipped in zip(*both, strict=True):
        assert split.input_ids.tolist() == clipped.input_ids.tolist()
    counts = encoder(lambda *_: returned, 5, "split")(row()).counts
    assert (counts.clipped, counts.skipped) == (1, 0)


def test_a_split_document_is_not_counted_as_too_long() -> None:
    encoded = encoder(lambda *_: [item(0, 7), item(0, 2)], 3, "split")(row())
    assert (encoded.counts.clipped, encoded.counts.skipped) == (0, 0)
    assert [example.part for example in encoded.examples] == [0, 1, 2, 3]


def test_weights_are_split_with_their_tokens() -> None:
    returned = item(0, 4, loss_weights=[1, 2, 3, 4])
    examples = encode(returned, max_length=3, on_too_long="split")
    weights = [example.loss_weights for example in examples]
    assert [None if each is None else each.tolist() for each in weights] == [[1, 2, 3], [4, 4]]


def test_random_lengths_change_which_examples_rows_make() -> None:
    config = DataConfig(train="d", on_too_long="split")
    random = config.model_copy(update={"random_length": 0.01})
    assert examples_key(random) != examples_key(config)


def test_pieces_are_drawn_again_in_each_epoch_and_the_same_in_one() -> None:
    make = replace(encoder(lambda *_: item(0, 7), 4, "split"), random_length=1.0)
    lengths = [
        tuple(len(example.input_ids) for example in make(row(), epoch).examples)
        for epoch in (*range(8), *range(8))
    ]
    assert lengths[:8] == lengths[8:]
    assert len(set(lengths)) > 1
