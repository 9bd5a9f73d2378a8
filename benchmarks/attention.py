"""Attention alone, forward and backward: in blocks, packed, and with dense masks.

    python benchmarks/attention.py [--device cuda] [--packs 2048 4096 8192] [--block-length 32]

Packs are filled with documents as long as chat rows (about 370 tokens), and with one document. Of
each pack there are two comparisons:

    blocks    [noisy ; clean] in blocks, against full attention of the same positions per document
    packed    full attention per document, against one dense block-diagonal mask

Both ways of a comparison run in turns on the same queries, keys and values: the ratio is the median
of the ratios of these pairs. Bytes are the most that was in memory above what every way has, which
is queries, keys, values, the result and the gradients. On CPU they are counted, operation by
operation; on CUDA they are the allocator's. `mask_mb` is a dense mask of one byte a pair. MB are
10^6 bytes.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))

import chat_rows
import report
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from llada_sft.model.layers.attention import Plan, Sequences, attend, plan_attention
from llada_sft.model.layers.blocks import Blocks, plan_blocks
from llada_sft.model.layers.flex import has_flex, plan_flex

PACKAGES = ("torch", "llada-sft")
# Of the rows of chat_rows.py.
LETTERS_OF_A_TOKEN = 4


def chat_lengths(positions: int, block_length: int) -> list[int]:
    """Return the lengths of documents that fill a pack, each of whole blocks but the last."""
    lengths, source = list[int](), chat_rows.texts(0)
    while sum(lengths) < positions:
        tokens = len(next(source)) // LETTERS_OF_A_TOKEN
        blocks = max(1, round(tokens / block_length))
        lengths.append(min(blocks * block_length, positions - sum(lengths)))
    return lengths


class Alive(TorchDispatchMode):
    """Remembers the most bytes of results of operations that are in memory together."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.most, self._alive = 0, dict[int, tuple[StorageWeakRef, int]]()
        self._inputs = {x.untyped_storage()._cdata for x in inputs}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        results = function(*args, **(kwargs or {}))
        for result in results if isinstance(results, (tuple, list)) else (results,):
            if isinstance(result, Tensor):
                storage = result.untyped_storage()
                if storage._cdata not in self._inputs:
                    self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._alive = {key: one for key, one in self._alive.items() if not one[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._alive.values()))
        return results


class Pack:
    """The queries, keys and values of a pack, and what its gradients are multiplied by."""

    def __init__(self, positions: int, options: argparse.Namespace) -> None:
        random = torch.Generator().manual_seed(0)
        heads = (options.heads, options.kv_heads, options.kv_heads)
        shapes = [(1, positions, number, options.head_dim) for number in heads]
        kind = {"device": options.device, "dtype": getattr(torch, options.dtype)}
        drawn = [torch.randn(shape, generator=random).to(**kind) for shape in (*shapes, shapes[0])]
        *self.inputs, self.slopes = drawn
        for x in self.inputs:
            x.requires_grad_()

    def run(self, make_plan: Callable[[], Plan]) -> None:
        """Attend, forward and backward; the plan is a part of it."""
        mixed = attend(*self.inputs, make_plan())
        torch.autograd.grad(mixed, self.inputs, self.slopes)

    def seconds(self, make_plan: Callable[[], Plan]) -> float:
        began = time.perf_counter()
        self.run(make_plan)
        if self.slopes.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def peak_bytes(self, make_plan: Callable[[], Plan]) -> int:
        needed = self.slopes.nbytes + sum(x.nbytes for x in self.inputs)
        if self.slopes.device.type == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.run(make_plan)
            return torch.cuda.max_memory_allocated() - before - needed
        with Alive([*self.inputs, self.slopes]) as alive:
            self.run(make_plan)
        return alive.most - needed


def per_document(lengths: Sequence[int], device: torch.device, dtype: torch.dtype) -> Plan:
    """Plan full attention: each document for itself."""
    return plan_attention(None, Sequences(lengths), device, dtype)


def dense_mask(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Return one mask [1, 1, L, L] for all documents."""
    document = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(device)
    return (document[:, None] == document)[None, None]


def in_blocks(blocks: Blocks, lengths: Sequence[int], device: torch.device, head_dim: int) -> Plan:
    """Plan it as the network does."""
    if has_flex(device, head_dim):
        return plan_flex(blocks, lengths, None, device)
    return plan_blocks(blocks, lengths, None)


def compare(
    pack: Pack, ours: Callable[[], Plan], theirs: Callable[[], Plan], repeats: int
) -> dict[str, Any]:
    """Return seconds and bytes of both, and the ratio of seconds."""
    pairs = [(pack.seconds(ours), pack.seconds(theirs)) for _ in range(repeats + 1)][1:]
    seconds = [statistics.median(times) for times in zip(*pairs, strict=True)]
    ratio = statistics.median(own / other for own, other in pairs)
    megabytes = [pack.peak_bytes(plan) / 1e6 for plan in (ours, theirs)]
    return {
        "s": seconds[0],
        "other_s": seconds[1],
        "ratio": ratio,
        "mb": megabytes[0],
        "other_mb": megabytes[1],
    }


def measure(lengths: list[int], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return both comparisons of a pack."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    blocks, positions = Blocks(options.block_length, doubled=True), sum(lengths)
    about = {"pack": positions, "documents": len(lengths)}
    doubled = [2 * length for length in lengths]
    found = compare(
        Pack(2 * positions, options),
        lambda: in_blocks(blocks, lengths, device, options.head_dim),
        lambda: per_document(doubled, device, dtype),
        options.repeats,
    )
    mask_mb = (2 * positions) ** 2 / 1e6
    lines = [{"what": "blocks", **about, **found, "mask_mb": mask_mb}]
    if len(lengths) > 1:
        found = compare(
            Pack(positions, options),
            lambda: per_document(lengths, device, dtype),
            lambda: dense_mask(lengths, device),
            options.repeats,
        )
        lines.append({"what": "packed", **about, **found, "mask_mb": positions**2 / 1e6})
    return lines


def main() -> int:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--packs", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--block-length", type=int, default=32)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("attention.json"))
    options = parser.parse_args()
    about = report.surroundings(PACKAGES)
    torch.set_num_threads(options.threads)
    rows = []
    for positions in options.packs:
        for lengths in (chat_lengths(positions, options.block_length), [positions]):
            rows += measure(lengths, options)
    report.print_table(rows)
    names = ("device", "dtype", "block_length", "heads", "kv_heads", "head_dim", "threads")
    sizes = {name: getattr(options, name) for name in (*names, "repeats")}
    report.write(options.out, {**about, **sizes, "lines": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
