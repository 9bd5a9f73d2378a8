"""What a training costs beyond a bare loop of its functions: Lightning, ZeRO-3, agreement, log.

    python benchmarks/product.py [--layers 8] [--repeats 3] [--before DIR] [--out FILE]

bare     the micro-batches that the training has made, through the same network, with torch's fused
         AdamW and gradient clipping, in a loop of ten lines
product  the training itself: one rank, ZeRO-3, fp32, packed; as `launch.py --local` starts it, but
         in this process

before   the training of another checkout (a git worktree of an older commit), with `--before`

All train the same rows from the same weights, in processes of their own, in turns; the losses must
agree. CPU seconds of a step, from its begin to that of the next one: with one thread they do not
depend on what else the machine does as the clock's do. The median of steps and turns counts.

A second table has the operations of one step in which both differ: calls, self CPU time and the
bytes that they allocate, each as product minus bare.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))

import chat_rows
import report

PACKAGES = ("torch", "deepspeed", "lightning", "llada-sft")
SIZE = {"d_model": 512, "n_heads": 8, "mlp_hidden_size": 1536, "vocab_size": 126_464}
WARM_UP = 2
Line = dict[str, Any]


def prepare(folder: Path, layers: int) -> None:
    """Write rows, a tokenizer and a network with random weights."""
    import torch
    from safetensors.torch import save_file

    from llada_sft.model import NetworkConfig, build_model
    from llada_sft.model.families import llada

    tokenizer = chat_rows.write_tokenizer(folder / "model")
    chat_rows.write_shards(folder / "rows", 1, 600)
    values = llada.FAMILY.config_json(
        n_layers=layers,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        **SIZE,
    )
    (folder / "model/config.json").write_text(json.dumps(values))
    torch.manual_seed(0)
    weights = build_model(NetworkConfig(values), 0).state_dict()
    save_file(weights, folder / "model/model.safetensors")


def config_of(folder: Path, steps: int) -> Any:
    from llada_sft.config import load_config

    overrides = [
        "run.name=product",
        f"run.root={folder}",
        f"model.path={folder / 'model'}",
        "model.activation_checkpointing=none",
        f"data.train={folder / 'rows'}",
        "data.validation=null",
        "data.max_length=1024",
        "data.end=1",
        "data.batching=packed",
        "data.max_tokens=2048",
        "data.prefetch_steps=8",
        "train.precision=fp32",
        "train.accelerator=cpu",
        "train.micro_batch_size=1",
        "train.accumulate_grad_batches=2",
        f"train.max_steps={steps}",
        "train.checkpoint_every_steps=1000000",
        "slurm.ranks_per_node=1",
        "log.every_n_steps=10",
    ]
    return load_config(report.ROOT / "config/local.yaml", overrides)


class Steps:
    """Times steps, and profiles the last one.

    Args:
        number: Of all steps.
    """

    def __init__(self, number: int) -> None:
        import torch

        self._number = number
        self._marks: list[float] = []
        self._profile = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
        )

    def begin(self) -> None:
        """Mark the begin of a step."""
        self._marks.append(time.process_time())
        if len(self._marks) == self._number:
            self._profile.start()

    def end(self) -> None:
        """Mark the end of the last step."""
        self._profile.stop()

    def seconds(self) -> list[float]:
        """Return the CPU seconds of each step that was neither a warm-up nor profiled."""
        marks = self._marks[WARM_UP:]
        return [after - before for before, after in pairwise(marks)]

    def operations(self) -> dict[str, list[float]]:
        """Return calls, self CPU milliseconds and allocated MB of each operation."""
        return {
            event.key: [
                event.count,
                event.self_cpu_time_total / 1e3,
                max(0, event.self_cpu_memory_usage) / 1e6,
            ]
            for event in self._profile.key_averages()
        }


def run_product(folder: Path, steps: int) -> Line:
    """Train, and keep what the steps were made of."""
    import os

    import torch

    from llada_sft.cluster.launch.ports import free_port
    from llada_sft.placement import Placement
    from llada_sft.run_dir import RunDir
    from llada_sft.training.host import Host
    from llada_sft.training.module import DiffusionModule
    from llada_sft.training.trainer import train

    clock, kept, losses = Steps(steps), [], []
    original: Callable[..., None] = DiffusionModule.training_step
    accumulate = DiffusionModule._accumulate

    def training_step(self: Any, batch: Any, index: int) -> None:
        kept.append((batch.micro_batches, batch.pace.rate))
        clock.begin()
        original(self, batch, index)
        if len(kept) == steps:
            clock.end()

    def accumulated(self: Any, batch: Any) -> Any:
        found = accumulate(self, batch)
        losses.append(found)
        return found

    DiffusionModule.training_step = training_step  # type: ignore[method-assign]
    DiffusionModule._accumulate = accumulated  # type: ignore[method-assign]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    place = Placement(0, 1, 0, 0, "127.0.0.1", int(os.environ["MASTER_PORT"]))
    run = folder / f"run_{time.time_ns()}"
    run.mkdir()
    train(config_of(folder, steps), RunDir(run), place, Host())
    torch.save(kept, folder / "steps.pt")
    sums = [float(torch.stack(each).sum()) for each in losses]
    return {"seconds": clock.seconds(), "losses": sums, "operations": clock.operations()}


def run_bare(folder: Path, steps: int) -> Line:
    """Train the same micro-batches in a loop."""
    import torch

    from llada_sft.model import build_model
    from llada_sft.training.module import parameter_groups

    torch.set_num_threads(1)
    kept = torch.load(folder / "steps.pt", weights_only=False)
    model = build_model(folder / "model", 0).float()
    model.set_activation_checkpointing("none")
    config = config_of(folder, steps).optim
    groups = parameter_groups(model, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, fused=True)
    clock, losses = Steps(steps), []
    for micro_batches, rate in kept:
        clock.begin()
        total = 0.0
        for batch in micro_batches:
            loss = model(
                batch.noisy_ids,
                positions=batch.positions,
                sequences=batch.sequences,
                targets=batch.targets,
                coefficients=batch.terms,
            ).loss
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    clock.end()
    return {"seconds": clock.seconds(), "losses": losses, "operations": clock.operations()}


def differences(bare: Line, product: Line, count: int = 14) -> list[Line]:
    """Return the operations that differ most in time, and the sum of all others."""
    before, after = bare["operations"], product["operations"]
    found = {}
    for name in before.keys() | after.keys():
        one, other = before.get(name, [0, 0, 0]), after.get(name, [0, 0, 0])
        found[name] = [b - a for a, b in zip(one, other, strict=True)]
    order = sorted(found, key=lambda name: -abs(found[name][1]))
    lines = [_line(name, found[name]) for name in order[:count]]
    rest = [sum(found[name][column] for name in order[count:]) for column in range(3)]
    return [*lines, _line("all others", rest)]


def _line(name: str, values: list[float]) -> Line:
    calls, ms, megabytes = values
    return {
        "operation": name[:60],
        "calls": round(calls),
        "ms": round(ms, 1),
        "MB": round(megabytes, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        if asked.side == "before":
            sys.path.insert(0, str(asked.before))
        run = run_bare if asked.side == "bare" else run_product
        done = run(asked.folder, asked.steps)
        (asked.folder / f"{asked.side}.json").write_text(json.dumps(done))
        return
    # The product comes first: it makes the micro-batches.
    sides = ("product", "bare", "before") if asked.before else ("product", "bare")
    turns: dict[str, list[Line]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, asked.layers)
        for _ in range(asked.repeats):
            for side, done in turns.items():
                options = ["--side", side, "--folder", name, "--steps", str(asked.steps)]
                options += ["--before", str(asked.before.resolve())] if asked.before else []
                subprocess.run([sys.executable, __file__, *options], check=True)
                done.append(json.loads((folder / f"{side}.json").read_text()))
    bare, product = turns["bare"][-1], turns["product"][-1]
    pairs = zip(bare["losses"], product["losses"], strict=True)
    apart = max(abs(b - a) / abs(a) for a, b in pairs)
    lines = [
        {"side": side, "CPU s of a step": statistics.median(s for t in of for s in t["seconds"])}
        for side, of in turns.items()
    ]
    least = next(line["CPU s of a step"] for line in lines if line["side"] == "bare")
    for line in lines:
        line["of bare"] = line["CPU s of a step"] / least
        line["MB"] = sum(values[2] for values in turns[line["side"]][-1]["operations"].values())
    report.print_table(lines)
    print(f"losses differ by {apart:.1e} of their value at most\n")
    operations = differences(bare, product)
    report.print_table(operations)
    if asked.out:
        measured = {"arguments": {k: str(v) for k, v in vars(asked).items()}}
        measured |= report.surroundings(PACKAGES)
        measured |= {"lines": lines, "losses differ by": apart, "operations": operations}
        report.write(asked.out, measured)


if __name__ == "__main__":
    main()
