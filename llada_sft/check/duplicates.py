"""Rows that are there twice, and training rows that are in validation too.

Two rows are the same if their texts are, byte for byte, or if they are encoded to the same tokens:
of two rows with other fields besides, or of a dialogue of which other answers are drawn, only one
of the two need hold. Texts and tokens are compared by hashes of 64 bits: among ten million rows,
two different ones are taken for the same with a probability of 1 in 200,000.
"""

import numpy as np
from numpy.typing import NDArray

from llada_sft.check.reading import Rows

Pairs = list[tuple[int, int]]


def repeated(rows: Rows, first: int) -> tuple[int, Pairs]:
    """Count the rows that an earlier one is the same as.

    Args:
        rows: All rows.
        first: How many of them to name.

    Returns:
        How many there are, and the first of them, each with an earlier row.
    """
    texts, ids = _before(rows.records), _before(rows.ids)
    earlier = np.where(texts >= 0, texts, ids)
    repeats = np.flatnonzero(earlier >= 0)
    return len(repeats), [(int(row), int(earlier[row])) for row in repeats[:first]]


def found_in(rows: Rows, others: Rows, first: int) -> tuple[int, Pairs]:
    """Count the rows that one of the others is the same as, and name the first."""
    texts, ids = _place_in(rows.records, others.records), _place_in(rows.ids, others.ids)
    places = np.where(texts >= 0, texts, ids)
    repeats = np.flatnonzero(places >= 0)
    return len(repeats), [(int(row), int(places[row])) for row in repeats[:first]]


def _before(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each, the last place before it that has the same hash; -1 where there is none."""
    order = np.argsort(hashes, kind="stable")
    same = hashes[order[1:]] == hashes[order[:-1]]
    before = np.full(len(hashes), -1, np.int64)
    before[order[1:][same]] = order[:-1][same]
    return before


def _place_in(hashes: NDArray[np.uint64], others: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each, a place of its hash among the others; -1 where it is not."""
    places = np.full(len(hashes), -1, np.int64)
    if not len(others):
        return places
    order = np.argsort(others, kind="stable")
    nearest = np.minimum(np.searchsorted(others, hashes, sorter=order), len(others) - 1)
    there = others[order[nearest]] == hashes
    places[there] = order[nearest][there]
    return places
