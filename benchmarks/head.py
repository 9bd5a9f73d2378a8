"""The head and its loss: piece by piece, also with Liger's kernel, against full logits.

    python benchmarks/head.py [--device cuda] [--positions 256 1024] [--vocabulary 126464]

Each line is a process of its own: its time is the median of --repeats after one to warm up, its
bytes are the most that were in memory above weights and hidden states (resident memory on CPU, the
allocator's on CUDA). GB are 10^9 bytes. All ways have the same loss, or the run fails.
"""

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))

import report
import torch
from torch import Tensor
from torch.nn import functional as F

from llada_sft.model.kernels.choice import LIGER as LIGER_PACKAGE
from llada_sft.model.layers.head import weighted_cross_entropy

PACKAGES = ("torch", "liger-kernel", "llada-sft")
WAYS = ("pieces", "full logits")
# On CUDA, where Liger's kernels are installed.
LIGER = "pieces, liger"


def full_logits(x: Tensor, weight: Tensor, targets: Tensor, coefficients: Tensor) -> Tensor:
    """Return the same loss of logits that all exist at once, as the peers take it."""
    losses = F.cross_entropy((x @ weight.T).float(), targets, reduction="none")
    return (losses * coefficients).sum()


def measure(way: str, positions: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return time, bytes and loss of one way."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    x = torch.randn(positions, options.width, device=device, dtype=dtype, requires_grad=True)
    weight = torch.randn(options.vocabulary, options.width, device=device, dtype=dtype)
    weight.mul_(options.width**-0.5).requires_grad_()
    targets = torch.randint(options.vocabulary, (positions,), device=device)
    coefficients = torch.rand(positions, device=device) / positions
    ways = {"pieces": weighted_cross_entropy, "full logits": full_logits}
    if way == LIGER:
        from llada_sft.model.kernels.liger import liger_cross_entropy

        ways[LIGER] = partial(weighted_cross_entropy, kernel=liger_cross_entropy)
    before, seconds, loss = _peak(device), [], 0.0
    for _ in range(options.repeats + 1):
        x.grad = weight.grad = None
        began = time.perf_counter()
        result = ways[way](x, weight, targets, coefficients)
        torch.autograd.backward(result)
        loss = float(result.detach())
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    peak = (_peak(device) - before) / 1e9
    median = statistics.median(seconds[1:])
    return {"positions": positions, "way": way, "s": median, "peak_gb": peak, "loss": loss}


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts in KiB.
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> int:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--positions", type=int, nargs="+", default=[256, 2048])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=126_464)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("head.json"))
    options = parser.parse_args()
    about = report.surroundings(PACKAGES)
    has_liger = options.device == "cuda" and LIGER_PACKAGE.problem() is None
    rows = []
    for positions in options.positions:
        losses = []
        for way in (*WAYS, LIGER) if has_liger else WAYS:
            with multiprocessing.get_context("spawn").Pool(1) as process:
                row = process.apply(measure, (way, positions, options))
            losses.append(row.pop("loss"))
            rows.append(row)
        if any(abs(loss - losses[1]) > 1e-2 * abs(losses[1]) for loss in losses):
            raise RuntimeError(f"the losses differ: {losses}")
    report.print_table(rows)
    sizes = {name: getattr(options, name) for name in ("device", "dtype", "width", "vocabulary")}
    report.write(options.out, {**about, **sizes, "heads": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
