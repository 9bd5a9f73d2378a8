"""Keys of draws: the same on every machine, and other ones for other parts."""

import itertools

from llada_sft.data.records.normalize import row_key
from llada_sft.keys import digest, hashed


def test_keys_are_the_same_on_every_machine() -> None:
    assert hashed("noise", 3, 1, "a.jsonl", 7, 0) == 15841995997274781639
    assert digest(b"a", 16).hex() == "27c35e6e9373877f29e562464e46497e"


def test_keys_depend_on_every_part_and_on_their_order() -> None:
    parts = [("a", 1), (1, "a"), ("a", 11), ("a1", 1), ("a", 1, 1), ("a",), ("a1",), ()]
    assert len({hashed(*some) for some in parts}) == len(parts)
    assert all(0 <= hashed(*some) < 2**64 for some in parts)


def test_the_key_of_a_row_is_hashed_like_the_others() -> None:
    for seed, epoch, line in itertools.product((0, 12), repeat=3):
        assert row_key(seed, epoch, "a", line) == hashed("row", seed, epoch, "a", line)


def test_a_digest_of_another_length_is_another_digest() -> None:
    assert not digest(b"a", 16).startswith(digest(b"a", 8))
