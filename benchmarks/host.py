"""What DeepSpeed's hooks cost the host, for each block; and the optimizer's step on the CPU.

    python benchmarks/host.py [--layers 32] [--repeats 5] [--megaparameters 40] [--out FILE]

bare     torch's own loop, without DeepSpeed
modules  ZeRO-3 with hooks for each module: `deepspeed.leaf_blocks: false`
blocks   ZeRO-3 with blocks as leaves: `deepspeed.leaf_blocks: true`

The network is so narrow that nearly all time is the host's: what a GPU waits for if its kernels are
done sooner. One rank, one thread, forward and backward pass of one micro-batch; CPU time, the least
of some repeats. `hooks_ms` is what a block takes more than in the bare loop, which recomputes, too.
`gathers` counts the calls that fetch partitioned weights; on one rank nothing is sent. Weights are
released after each use and not fetched ahead, as in a network that is too large to be kept.

AdamW: the step of one flat tensor as ZeRO keeps it, torch's loop over operations and its fused one.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))
os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import report
import torch
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from torch import Tensor

from llada_sft.cluster.launch.ports import free_port
from llada_sft.model import NetworkConfig, build_model

PACKAGES = ("torch", "deepspeed", "llada-sft")
IDS = torch.arange(16).view(1, 16)
CONFIG: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": 0,
        "stage3_max_reuse_distance": 0,
    },
    "zero_allow_untested_optimizer": True,
}


def network(layers: int, recompute: bool) -> Any:
    config = NetworkConfig.from_size(
        d_model=16,
        n_layers=layers,
        n_heads=2,
        mlp_hidden_size=32,
        max_sequence_length=16,
        vocab_size=32,
        mask_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    made = build_model(config)
    made.set_activation_checkpointing("full" if recompute else "none")
    return made


def micro_batch(kind: str, layers: int, recompute: bool) -> Callable[[], None]:
    """Return a function that makes the passes of one micro-batch."""

    def loss(model: Any) -> Tensor:
        logits: Tensor = model(IDS).logits
        return logits.logsumexp(-1).sum()

    if kind == "bare":
        bare = network(layers, recompute)
        return lambda: torch.autograd.backward(loss(bare))
    with deepspeed.zero.Init(config_dict_or_path=CONFIG):
        model = network(layers, recompute)
    if kind == "blocks":
        deepspeed.utils.set_z3_leaf_modules(model, list(model._no_split_modules))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine: Any = deepspeed.initialize(model=model, optimizer=optimizer, config=CONFIG)[0]

    def passes() -> None:
        engine.backward(loss(engine))
        engine.step()

    return passes


@contextmanager
def counted_gathers() -> Iterator[list[int]]:
    """Count the calls that gather weights; the method is private."""
    name = "_PartitionedParameterCoordinator__all_gather_params_"
    gather, count = getattr(PartitionedParameterCoordinator, name), [0]

    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        count[0] += 1
        gather(self, *args, **kwargs)

    setattr(PartitionedParameterCoordinator, name, counted)
    try:
        yield count
    finally:
        setattr(PartitionedParameterCoordinator, name, gather)


def fastest(work: Callable[[], object], repeats: int) -> float:
    """Return seconds of this process on its core, which other processes hardly change."""
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def measure_hooks(layers: int, repeats: int) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for recompute in (False, True):
        bare_s = 0.0
        for kind in ("bare", "modules", "blocks"):
            passes = micro_batch(kind, layers, recompute)
            # DeepSpeed records the order of modules in the first two.
            for _ in range(3):
                passes()
            with counted_gathers() as gathers:
                passes()
            seconds = fastest(passes, repeats)
            bare_s = seconds if kind == "bare" else bare_s
            lines.append(
                {
                    "loop": kind,
                    "recompute": recompute,
                    "micro_batch_ms": 1e3 * seconds,
                    "block_ms": 1e3 * seconds / layers,
                    "hooks_ms": 1e3 * (seconds - bare_s) / layers,
                    "gathers": gathers[0],
                }
            )
    return lines


def measure_optimizer(count: int, repeats: int) -> list[dict[str, Any]]:
    lines = []
    for fused in (False, True):
        flat = torch.nn.Parameter(torch.randn(count))
        flat.grad = torch.randn(count)
        optimizer = torch.optim.AdamW([flat], lr=1e-5, fused=fused)
        optimizer.step()
        seconds = fastest(optimizer.step, repeats)
        lines.append({"AdamW": "fused" if fused else "not fused", "step_ms": 1e3 * seconds})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--megaparameters", type=int, default=40)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    # An op that only inference uses, and that DeepSpeed would compile now.
    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed("gloo", verbose=False)
    measured = {"arguments": {name: str(value) for name, value in vars(asked).items()}}
    measured |= report.surroundings(PACKAGES)
    measured["hooks"] = measure_hooks(asked.layers, asked.repeats)
    measured["optimizer"] = measure_optimizer(asked.megaparameters * 10**6, asked.repeats)
    for table in (measured["hooks"], measured["optimizer"]):
        report.print_table(table)
    if asked.out:
        report.write(asked.out, measured)


if __name__ == "__main__":
    main()
