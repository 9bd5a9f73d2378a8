"""Random orders that are never laid out: any part is worked out from a key when it is needed.

A file may have ten million rows, and a run may resume at any of them, so a permutation is neither
kept nor drawn from its start.
"""

import math

import numpy as np
from numpy.typing import NDArray

from llada_sft.keys import digest

# Each of the two digits is moved half as often.
_NUM_ROUNDS = 8
# With so few rows, digits are too small to be moved to every order as often; to sort is quick.
_FEW_ROWS = 1024
# Odd constants with well mixed bits: the golden ratio's, and one that Pelle Evensen found.
_SPREAD, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)


def keys_of(num_keys: int, *parts: object) -> NDArray[np.uint64]:
    """Derive 64-bit keys from anything that has a text.

    Returns:
        uint64 [num_keys], at most 8.
    """
    text = "\x1f".join(map(str, parts)).encode()
    return np.frombuffer(digest(text, 8 * num_keys), "<u8")


def hash_numbers(numbers: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """Turn numbers into random ones, each by itself.

    Args:
        numbers: uint64 [N].
        key: Chooses the function.

    Returns:
        uint64 [N]; the upper half of the bits is the better one.
    """
    mixed = (numbers ^ key) * _SPREAD
    mixed ^= mixed >> _HALF
    mixed *= _MIX
    mixed ^= mixed >> _HALF
    mixed *= _MIX
    return mixed


class KeyedPermutation:
    """A random permutation of `range(num_rows)`.

    A position is written as two digits; in turn, each is moved on by a random number that depends
    on the other alone, which can be undone and so maps no two positions to one. Two digits may
    write a few numbers too many: a position that is mapped to one of these is mapped again.

    Args:
        num_rows: How many.
        parts: Whatever shall choose the permutation.

    Source: Black and Rogaway, Ciphers with arbitrary finite domains, CT-RSA 2002: the generalized
        Feistel cipher with cycle walking. Not for secrets: the random numbers are a fast hash.
    """

    def __init__(self, num_rows: int, *parts: object) -> None:
        self._num_rows = num_rows
        self._keys = keys_of(_NUM_ROUNDS, *parts)
        low = math.isqrt(max(num_rows, 1) - 1) + 1
        self._bases = np.uint64(low), np.uint64(-(-num_rows // low))

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, positions: slice) -> NDArray[np.int64]:
        """Return the numbers at some positions: int64 [N]."""
        if self._num_rows <= _FEW_ROWS:
            return hash_numbers(
                np.arange(self._num_rows, dtype=np.uint64), self._keys[0]
            ).argsort()[positions]
        numbers = self._mapped(np.arange(*positions.indices(self._num_rows), dtype=np.uint64))
        while (outside := numbers >= self._num_rows).any():
            numbers[outside] = self._mapped(numbers[outside])
        return numbers.view(np.int64)

    def _mapped(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        moved, other = numbers % self._bases[0], numbers // self._bases[0]
        base, other_base = self._bases
        for key in self._keys:
            # The upper half of the hash, times the base, over 2**32: a number below the base.
            moved = (moved + ((hash_numbers(other, key) >> _HALF) * base >> _HALF)) % base
            moved, other, base, other_base = other, moved, other_base, base
        return moved + other * self._bases[0]
