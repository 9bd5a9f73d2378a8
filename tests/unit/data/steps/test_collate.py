"""Micro-batches: what is added to shorter examples, and whether it is learned or hidden."""

from dataclasses import replace

import numpy as np
import pytest

from llada_sft.data.examples.encode import Example
from llada_sft.data.steps.collate import EQUAL_TOKENS, pack, pad

EOS = 9


def example(prompt: int, response: int, grows: bool) -> Example:
    return Example(
        input_ids=np.array([1] * prompt + [2] * response),
        response_mask=np.array([False] * prompt + [True] * response),
        noisy_ids=None,
        grows=grows,
        file="a",
        line=1,
        part=0,
    )


def test_a_growing_tail_is_response() -> None:
    batch = pad([example(1, 2, True), example(2, 4, True), example(1, 1, True)], EOS)
    assert batch.input_ids.tolist() == [
        [1, 2, 2, EOS, EOS, EOS],
        [1, 1, 2, 2, 2, 2],
        [1, 2, EOS, EOS, EOS, EOS],
    ]
    assert batch.response_mask.astype(int).tolist() == [
        [0, 1, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1],
        [0, 1, 1, 1, 1, 1],
    ]
    assert batch.attention_mask is None
    # Those of the examples alone.
    assert batch.num_tokens == 3 + 6 + 2


def test_a_fixed_tail_is_padded_and_hidden() -> None:
    batch = pad([example(1, 2, False), example(2, 3, False)], EOS)
    assert batch.input_ids.tolist() == [[1, 2, 2, EOS, EOS], [1, 1, 2, 2, 2]]
    assert batch.response_mask.astype(int).tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 1]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.astype(int).tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.num_tokens == 8


def test_each_example_has_its_own_kind_of_tail() -> None:
    batch = pad([example(0, 1, True), example(0, 1, False), example(0, 3, False)], EOS)
    assert batch.response_mask.astype(int).tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 1]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.astype(int).tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 1]]


def test_hidden_ends_are_in_the_batch_where_an_example_has_one() -> None:
    plain, ended = example(1, 2, False), replace(example(1, 2, False), hidden=2)
    for together in (lambda rows: pad(rows, EOS), pack):
        assert together([plain, plain]).hidden == ()
        assert together([plain, ended]).hidden == (0, 2)


@pytest.mark.parametrize("grows", [True, False])
def test_examples_of_one_length_need_no_padding(grows: bool) -> None:
    batch = pad([example(1, 2, grows), example(2, 1, grows)], EOS)
    assert batch.attention_mask is None
    assert batch.num_tokens == 6


def test_no_example_is_one_token_that_counts_for_nothing() -> None:
    batch = pad([], EOS)
    assert batch.input_ids.tolist() == [[EOS]]
    assert batch.response_mask.tolist() == [[False]]
    assert batch.attention_mask is None
    assert (batch.keys, batch.lengths) == ((), ())


def weighted(prompt: int, response: int, weight: float, grows: bool) -> Example:
    weights = np.array([0.0] * prompt + [weight] * response, np.float32)
    return replace(example(prompt, response, grows), loss_weights=weights)


def test_what_is_added_weighs_as_the_end_of_its_answer() -> None:
    batch = pad([weighted(1, 1, 0.5, grows=True), example(1, 3, True)], EOS)
    assert batch.loss_weights is not None and batch.loss_weights.dtype == np.float32
    assert batch.loss_weights.tolist() == [[0, 0.5, 0.5, 0.5], [1, 1, 1, 1]]
    assert pad([example(1, 1, True)], EOS).loss_weights is None


def test_packed_examples_keep_their_weights() -> None:
    batch = pack([example(1, 1, False), weighted(1, 2, 2, grows=False)])
    assert batch.loss_weights is not None
    assert batch.loss_weights.tolist() == [[1, 1, 0, 2, 2]]
    assert pack([example(1, 1, False)]).loss_weights is None


def test_the_work_of_blocks_is_that_of_the_pairs_that_see_each_other() -> None:
    """Counted one by one: of noisy and clean positions, which sees which."""
    length, block = 12, 4
    row = Example(
        np.zeros(length, np.int64), np.ones(length, np.bool_), None, False, "a", 1, 0,
        block_length=block,
    )  # fmt: skip
    noisy = sum((j // block < i // block) + (j // block == i // block)
                for i in range(length) for j in range(length))  # fmt: skip
    clean = sum(j // block <= i // block for i in range(length) for j in range(length))
    assert pack([row]).work == 2 * length * EQUAL_TOKENS + noisy + clean
    assert pad([row, row], 0).block_length == block
