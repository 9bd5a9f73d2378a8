"""How full micro-batches are, and how long ranks wait for the one with the most to do.

    python benchmarks/packing.py --out benchmarks/results/packing.json

No network runs: lengths like those of chats (log-normal) are grouped by the code of the training,
for simulated ranks. Under ZeRO-3 all ranks wait for one another in each micro-batch. The cost of a
micro-batch is counted in tokens: `useful` is the share of real tokens in (ranks x the largest
micro-batch of any rank), summed over micro-batches. For packs, the cost has the quadratic part of
attention, too: `balance` is the mean cost over the largest cost of any rank, the mean of all
micro-batches; ranks that never wait would have 1. `sorted`: each rank has sorted the 4 or 16
micro-batches of its steps (`data.costliest_first`).
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))

import numpy as np
import report
from numpy.typing import NDArray

from llada_sft.data.examples.encode import Example
from llada_sft.data.steps.collate import EQUAL_TOKENS, UnmaskedBatch, pad
from llada_sft.data.steps.packing import costliest_first, in_order, of_similar_length, packs

LENGTHS = ((372, 1024), (764, 4096))
BUFFERS = (32, 64, 256)
PACKED = (4096, 8192, 16384)
Line = dict[str, Any]


def examples(mean: int, longest: int, count: int, rank: int) -> list[Example]:
    """Make examples of one rank that have nothing but their lengths."""
    random = np.random.default_rng(rank)
    lengths = random.lognormal(np.log(mean) - 0.5, 1.0, count).clip(8, longest).astype(int)
    zeros, mask = np.zeros(longest, np.int64), np.ones(longest, np.bool_)
    return [
        Example(zeros[:length], mask[:length], None, False, "a.jsonl", line, 0)
        for line, length in enumerate(lengths.tolist())
    ]


def padded(rows: list[Example], size: int, buffer: int | None) -> list[UnmaskedBatch]:
    groups = in_order([], iter(rows), size)
    if buffer is not None:
        groups = of_similar_length([], iter(rows), size, buffer)
    return [pad(group, 0) for group in groups]


def steps(batches: list[UnmaskedBatch], accumulate: int, sort: bool) -> Iterator[UnmaskedBatch]:
    """Yield the micro-batches of whole steps in the order of the training."""
    for start in range(0, len(batches) - accumulate + 1, accumulate):
        step = tuple(batches[start : start + accumulate])
        yield from costliest_first(step) if sort else step


def useful(ranks: list[list[UnmaskedBatch]]) -> float:
    """Return the share of real tokens in all that the ranks run or wait for."""
    together = list(zip(*ranks, strict=False))
    real = sum(sum(batch.lengths) for batches in together for batch in batches)
    return real / sum(len(b) * max(one.input_ids.size for one in b) for b in together)


def fill(batches: list[UnmaskedBatch]) -> float:
    return sum(sum(b.lengths) for b in batches) / sum(b.input_ids.size for b in batches)


def measure_padded(count: int, ranks: int) -> list[Line]:
    lines: list[Line] = []
    for mean, longest in LENGTHS:
        rows = [examples(mean, longest, count, rank) for rank in range(ranks)]
        for size in (2, 8):
            for buffer in (None, *BUFFERS):
                groups = [padded(of_rank, size, buffer) for of_rank in rows]
                line: Line = {"mean": mean, "longest": longest, "micro-batch": size}
                line["buffer"] = "in order" if buffer is None else str(buffer)
                line["fill"] = float(np.mean([fill(of_rank) for of_rank in groups]))
                for accumulate in (1, 4, 16):
                    ordered = [list(steps(g, accumulate, buffer is not None)) for g in groups]
                    line[f"useful, {accumulate} accumulated"] = useful(ordered)
                lines.append(line)
    return lines


def costs(rows: list[Example], max_tokens: int, buffer: int) -> NDArray[np.float64]:
    """Return the cost of each pack of a rank, in tokens."""
    groups = packs([], iter(rows), max_tokens, buffer)
    lengths = [np.array([len(one.input_ids) for one in group], np.float64) for group in groups]
    # The last pack of an epoch is not full.
    return np.array([(of + of**2 / EQUAL_TOKENS).sum() for of in lengths][:-1])


def balance(table: NDArray[np.float64]) -> Line:
    """Work out the balance of [ranks, micro-batches], in order and with sorted steps."""
    ranks, num = table.shape
    found: Line = {f"{ranks} ranks": float((table.mean(0) / table.max(0)).mean())}
    for accumulate in (4, 16):
        whole = table[:, : num // accumulate * accumulate].reshape(ranks, -1, accumulate)
        ordered = np.sort(whole, axis=2)
        value = (ordered.mean(0) / ordered.max(0)).mean()
        found[f"{ranks}, sorted {accumulate}"] = float(value)
    return found


def measure_packed(count: int, ranks: int) -> list[Line]:
    lines: list[Line] = []
    for mean, longest in LENGTHS:
        rows = [examples(mean, longest, count, rank) for rank in range(ranks)]
        for max_tokens in PACKED:
            for buffer in BUFFERS:
                of_ranks = [costs(of_rank, max_tokens, buffer) for of_rank in rows]
                num = min(map(len, of_ranks))
                table = np.stack([one[:num] for one in of_ranks])
                line: Line = {"mean": mean, "longest": longest, "max_tokens": max_tokens}
                line |= {"buffer": buffer, "spread %": float(100 * table.std() / table.mean())}
                for some in sorted({min(8, ranks), ranks}):
                    line |= balance(table[:some])
                lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=4000, help="examples of a rank")
    parser.add_argument("--ranks", type=int, default=32, help="for packs; padded: at most 8")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    measured = {"arguments": {key: str(value) for key, value in vars(asked).items()}}
    measured |= report.surroundings(("numpy",))
    measured["padded"] = measure_padded(asked.rows, min(8, asked.ranks))
    report.print_table(measured["padded"])
    measured["packed"] = measure_packed(asked.rows, asked.ranks)
    report.print_table(measured["packed"])
    if asked.out:
        report.write(asked.out, measured)


if __name__ == "__main__":
    main()
