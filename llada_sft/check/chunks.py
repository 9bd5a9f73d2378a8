"""Which rows are read together: all of them, the first, or a sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice


@dataclass(frozen=True)
class Chunk:
    """Some rows of one file.

    Attributes:
        number: Which file it is.
        rows: Their numbers among the rows of the file.
    """

    number: int
    rows: Sequence[int]


def whole_files(num_rows: Sequence[int], chunk_rows: int) -> list[Chunk]:
    """Divide all rows into chunks; no chunk is of two files."""
    return [
        Chunk(number, range(begin, min(begin + chunk_rows, rows)))
        for number, rows in enumerate(num_rows)
        for begin in range(0, rows, chunk_rows)
    ]


def first_rows(
    num_rows: Sequence[int], files_of_sets: Sequence[int], limit: int, chunk_rows: int
) -> list[Chunk]:
    """Divide the first `limit` rows of each set.

    Args:
        num_rows: Rows of each file, set by set.
        files_of_sets: Files of each set.
        limit: The most rows of a set.
        chunk_rows: The most rows of a chunk.
    """
    firsts: list[int] = []
    of_files = iter(num_rows)
    for files in files_of_sets:
        left = limit
        for rows in islice(of_files, files):
            firsts.append(min(rows, left))
            left -= firsts[-1]
    return whole_files(firsts, chunk_rows)


def grouped(sizes: Sequence[int], most: int) -> list[slice]:
    """Put neighbours together, as long as their sizes add up to no more than `most`."""
    groups, begin, size = [], 0, 0
    for number, one in enumerate(sizes):
        if number > begin and size + one > most:
            groups.append(slice(begin, number))
            begin, size = number, 0
        size += one
    return [*groups, slice(begin, len(sizes))] if sizes else []


def spread(total: int, number: int) -> set[int]:
    """Choose so many of all places, at equal distances."""
    number = min(number, total)
    return {place * total // number for place in range(number)}


def spread_sample(num_rows: Sequence[int], sample: int, chunk_rows: int) -> list[Chunk]:
    """Choose rows at equal distances over all files, one after the other."""
    total = sum(num_rows)
    sample = min(sample, total)
    chosen = [(2 * place + 1) * total // (2 * sample) for place in range(sample)]
    chunks, begin, done = [], 0, 0
    for number, rows in enumerate(num_rows):
        in_file = []
        while done < sample and chosen[done] < begin + rows:
            in_file.append(chosen[done] - begin)
            done += 1
        begin += rows
        chunks += [
            Chunk(number, in_file[start : start + chunk_rows])
            for start in range(0, len(in_file), chunk_rows)
        ]
    return chunks
