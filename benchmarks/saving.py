"""How long a training waits for a checkpoint, and how fast it is written, against dd.

    python benchmarks/saving.py [--megabytes 1024] [--ranks 2] [--repeats 5] [--folder DIR]

Each rank (a process of one thread) holds the optimizer's state of its share: 12 bytes for each
parameter. In turn, all ranks together
- write as many bytes with `dd conv=fsync`;
- save as training does when it waits for the disk (`train.async_checkpoints: false`);
- save in the background: the stall is the copy, the rest is written by the thread;
- make one step: forward, backward and AdamW of a network with as many parameters, on --tokens
  tokens, which is far less than a rank has in a real step.
A turn takes as long as its slowest rank. The table has medians, the rate of each kind as a share of
dd's, and the stalls in steps. The first round only warms up. MB are 10^6 bytes.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))

import report
import torch
from together import Ranks, Turn, dd
from torch import nn

from llada_sft.training.checkpoint.shard_writer import ShardWriter

PACKAGES = ("torch", "xxhash", "llada-sft")
KINDS = ("dd", "waiting", "background", "step")
_WIDTH = 1024


def make_rank(rank: int, folder: str, megabytes: int, tokens: int) -> Turn:
    """Return what one rank does in a turn."""
    torch.set_num_threads(1)
    layers = megabytes * 10**6 // 12 // _WIDTH**2
    network = nn.Sequential(*(nn.Linear(_WIDTH, _WIDTH, bias=False) for _ in range(layers)))
    optimizer = torch.optim.AdamW(network.parameters())
    inputs = torch.randn(tokens, _WIDTH)

    def step() -> None:
        network(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    state = {"weights": network.state_dict(), "optimizer": optimizer.state_dict()}
    path, writer = Path(folder) / f"rank_{rank}.pt", ShardWriter()

    def turn(kind: str) -> dict[str, float]:
        path.unlink(missing_ok=True)
        began = time.perf_counter()
        if kind == "dd":
            count = layers * _WIDTH**2 * 12 // (16 << 20)
            return {"whole_s": dd("if=/dev/zero", f"of={path}", f"count={count}", "conv=fsync")}
        if kind == "step":
            step()
            return {"whole_s": time.perf_counter() - began}
        writer.begin(background=kind == "background")
        writer.save(state, str(path))
        stall = time.perf_counter() - began
        while not writer.ended(60.0):
            pass
        return {"stall_s": stall, "whole_s": time.perf_counter() - began}

    return turn


def main() -> int:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1024, help="of each rank")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--folder", type=Path, help="the file system to write to")
    parser.add_argument("--out", type=Path, default=Path("saving.json"))
    options = parser.parse_args()
    about = report.surroundings(PACKAGES)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        ranks = Ranks(options.ranks, make_rank, name, options.megabytes, options.tokens)
        # Who comes first finds no blocks that were freed a moment ago: they take turns at that.
        turns = [
            {kind: ranks.turn(kind) for kind in KINDS[turn % 3 :] + KINDS[: turn % 3]}
            for turn in range(options.repeats + 1)
        ]
    rows = table(turns[1:], options.megabytes * options.ranks)
    report.print_table(rows)
    report.write(
        options.out,
        {**about, "megabytes": options.megabytes, "ranks": options.ranks, "saves": rows},
    )
    return 0


def table(turns: list[dict[str, dict[str, float]]], megabytes: int) -> list[dict[str, Any]]:
    """Return the medians of each kind, its rate as a share of dd's, and its stall in steps."""

    def median(kind: str, part: str) -> float:
        return statistics.median(turn[kind].get(part, turn[kind]["whole_s"]) for turn in turns)

    return [
        {
            "save": kind,
            "stall_s": median(kind, "stall_s"),
            "whole_s": median(kind, "whole_s"),
            "mb_per_s": megabytes / median(kind, "whole_s"),
            # Of the same round: what else the disk does changes from one to the next.
            "of_dd": statistics.median(t["dd"]["whole_s"] / t[kind]["whole_s"] for t in turns),
            "stall_steps": median(kind, "stall_s") / median("step", "whole_s"),
        }
        for kind in KINDS[:3]
    ]


if __name__ == "__main__":
    sys.exit(main())
