"""One micro-batch's forward and backward pass: real tokens per second, memory, and where it goes.

    python benchmarks/step.py [--device cuda] [--preset llada8b-width] [--layers 4] [--rows 24]
        [--profile FILE] [--product] [--out FILE]

padded     rows of their own, all as long as the longest: what `micro_batch_size` examples give
packed     whole examples in one row of at most `max_tokens` tokens: `batching: packed`
recompute  each block is computed again in the backward pass (`activation_checkpointing`)
bare GEMM  one large matrix product in the same dtype: the rate that nothing here can exceed
product    the same rows through launch.py (Lightning, ZeRO-3, AdamW, one rank); tokens per second
           of whole optimizer steps, read from the run's metrics.csv

Rows have chat-like lengths (log-normal, mean 764, 8 to 4,096 tokens; a quarter is the prompt), and
the noise is the training's. No optimizer, but for `product`. Every line computes the same rows,
except that packs shorter than the longest row skip those that do not fit.
Memory is the peak above the weights and their gradients. "out of memory" is a result.

MFU counts what the model needs, not what is computed: for a row of L tokens, M of them masked,

    6 · P · L + 12 · layers · d · L² + 6 · V · d · M

operations, with P the parameters of the blocks: no padding, no recomputing, the head at masked
positions only. It is divided by the time and by the rate of the bare GEMM of the same run.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))

import chat_rows
import numpy as np
import report
import torch

from llada_sft.config.schema import ObjectiveConfig
from llada_sft.data.examples.encode import Example
from llada_sft.data.steps.collate import pack, pad
from llada_sft.data.steps.local_step import LocalStep
from llada_sft.data.steps.packing import in_order, packs
from llada_sft.diffusion.objective import masked_cross_entropy
from llada_sft.model import LLaDAConfig, LLaDAModelLM
from llada_sft.training.consensus import Report
from llada_sft.training.noising import MicroBatch, NoiseSource

PACKAGES = ("torch", "lightning", "deepspeed", "transformers", "triton")
PRESETS: dict[str, dict[str, int]] = {
    "small": {"d_model": 512, "n_heads": 8, "mlp_hidden_size": 1536, "vocab_size": 4096},
    "llada8b-width": {},  # The defaults of LLaDAConfig.
}
MEAN_TOKENS, MOST_TOKENS = 764, 4096
LOOK_AHEAD = 256
PACKED = (2048, 4096, 8192, 16384)
REPEAT = 3
MB = 1e6
MEASURED = ("real/s", "all/s", "ms", "MB", "MFU %")
Line = dict[str, Any]


def examples(count: int, vocab_size: int) -> list[Example]:
    """Make rows of random tokens."""
    random = np.random.default_rng(0)
    lengths = random.lognormal(np.log(MEAN_TOKENS) - 0.5, 1.0, count).clip(8, MOST_TOKENS)
    made = []
    for line, length in enumerate(lengths.astype(int).tolist()):
        ids = random.integers(0, vocab_size - 2, length)
        response = np.arange(length) >= length // 4
        made.append(Example(ids, response, None, True, "rows.jsonl", line, 0))
    return made


def micro_batches(
    rows: list[Example], config: LLaDAConfig, padded: int | None, max_tokens: int | None
) -> list[MicroBatch]:
    """Group and mask the rows as the training does; the whole of it counts as one step."""
    if padded is not None:
        clean = [pad(group, config.vocab_size - 2) for group in in_order([], iter(rows), padded)]
    else:
        assert max_tokens is not None
        clean = [pack(group) for group in packs([], iter(rows), max_tokens, LOOK_AHEAD)]
    source = NoiseSource(ObjectiveConfig(), 0, config.vocab_size - 1, rank=0, world_size=1)
    step = LocalStep(tuple(clean), 0, {})
    return source.micro_batches(step, Report(examples=len(rows)), 0)


def network(config: LLaDAConfig, device: torch.device, dtype: torch.dtype) -> LLaDAModelLM:
    """Make a network with random weights, on its device from the start."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = LLaDAModelLM(config)
    finally:
        torch.set_default_dtype(before)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.normal_(0, 0.02) if parameter.dim() > 1 else parameter.fill_(1)
    return model.train()


class Clock:
    """Seconds of the device's work, and its memory."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"

    def seconds(self, work: Callable[[], object]) -> float:
        if not self.cuda:
            began = time.perf_counter()
            work()
            return time.perf_counter() - began
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3

    def peak_above(self, base: int) -> float | None:
        return (torch.cuda.max_memory_allocated() - base) / MB if self.cuda else None


def gemm_rate(clock: Clock, dtype: torch.dtype) -> float:
    """Return the operations per second of one large matrix product."""
    size = 8192 if clock.cuda else 2048
    a, b = (torch.randn(size, size, device=clock.device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    return 2 * size**3 / statistics.median(clock.seconds(lambda: a @ b) for _ in range(10))


def needed_operations(rows: list[Example], config: LLaDAConfig, num_masked: int) -> float:
    """Count what the model needs for forward and backward; see the head of this file."""
    shapes = config.parameter_shapes()
    blocks = sum(int(np.prod(shape)) for name, shape in shapes.items() if ".blocks." in name)
    lengths = np.array([len(row.input_ids) for row in rows], np.float64)
    attention = 12.0 * config.n_layers * config.d_model * (lengths**2).sum()
    head = 6.0 * config.num_embeddings * config.d_model * num_masked
    return float(6.0 * blocks * lengths.sum() + attention + head)


def one_pass(model: LLaDAModelLM, batches: list[MicroBatch]) -> None:
    """Run forward and backward of each micro-batch, as the training module does."""
    for batch in batches:
        logits = model(
            batch.noisy_ids,
            attention_mask=batch.attention_mask,
            positions=batch.positions,
            sequence_lengths=batch.sequence_lengths,
        ).logits
        torch.autograd.backward(masked_cross_entropy(logits, batch.targets, batch.coefficients))


def variants() -> Iterator[tuple[str, int | None, int | None, bool]]:
    for recompute in (False, True):
        for padded in (2, 8):
            yield f"padded, {padded} rows", padded, None, recompute
        for max_tokens in PACKED:
            yield f"packed, {max_tokens} tokens", None, max_tokens, recompute


def measure(rows: list[Example], config: LLaDAConfig, clock: Clock, dtype: torch.dtype) -> Any:
    """Measure each way of grouping, with and without recomputing."""
    rate = gemm_rate(clock, dtype)
    print(f"bare GEMM: {rate / 1e12:,.1f} Tflop/s\n")
    model = network(config, clock.device, dtype)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    base = torch.cuda.memory_allocated() if clock.cuda else 0
    longest = max(len(row.input_ids) for row in rows)
    lines: list[Line] = []
    for name, padded, max_tokens, recompute in variants():
        room = longest if max_tokens is None else max_tokens
        group = [row for row in rows if len(row.input_ids) <= room]
        batches = [
            batch.to(clock.device) for batch in micro_batches(group, config, padded, max_tokens)
        ]
        model.set_activation_checkpointing(recompute)
        line: Line = {"way": name + (", recompute" if recompute else "")}
        line["micro-batches"] = len(batches)
        try:
            one_pass(model, batches)
            if clock.cuda:
                torch.cuda.reset_peak_memory_stats()
            times = [clock.seconds(lambda b=batches: one_pass(model, b)) for _ in range(REPEAT)]
        except torch.cuda.OutOfMemoryError:
            lines.append(line | dict.fromkeys(MEASURED, "out of memory"))
            torch.cuda.empty_cache()
            continue
        seconds = statistics.median(times)
        real = sum(len(row.input_ids) for row in group)
        masked = sum(len(batch.positions) for batch in batches)
        needed = needed_operations(group, config, masked)
        peak = clock.peak_above(base)
        lines.append(
            line
            | {
                "real/s": round(real / seconds),
                "all/s": round(sum(batch.noisy_ids.numel() for batch in batches) / seconds),
                "ms": round(1e3 * seconds / len(batches), 1),
                "MB": "not measured" if peak is None else round(peak),
                "MFU %": round(100 * needed / seconds / rate, 1),
            }
        )
        print(lines[-1], file=sys.stderr)
    return {"gemm_flops_per_s": rate, "lines": lines}


def profile(
    rows: list[Example], config: LLaDAConfig, clock: Clock, dtype: torch.dtype, out: Path
) -> None:
    """Write the kernels of one packed micro-batch of 16,384 tokens, the longest first."""
    model = network(config, clock.device, dtype)
    batches = [b.to(clock.device) for b in micro_batches(rows, config, None, PACKED[-1])][:1]
    one_pass(model, batches)
    with torch.profiler.profile() as recorded:
        one_pass(model, batches)
        if clock.cuda:
            torch.cuda.synchronize()
    by = "self_cuda_time_total" if clock.cuda else "self_cpu_time_total"
    table = recorded.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=90)
    out.write_text(table)


def product(config: LLaDAConfig, clock: Clock, num_steps: int = 12) -> list[Line]:
    """Train a few steps through launch.py, packed to 16,384 tokens."""
    from safetensors.torch import save_file

    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = chat_rows.write_tokenizer(folder / "model")
        chat_rows.write_shards(folder / "rows", 1, 2000)
        values = config.to_dict() | {
            "mask_token_id": tokenizer.mask_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.eos_token_id,
        }
        (folder / "model/config.json").write_text(json.dumps(values))
        weights = network(config, clock.device, torch.bfloat16).state_dict()
        save_file({k: v.cpu() for k, v in weights.items()}, folder / "model/model.safetensors")
        del weights
        if clock.cuda:
            torch.cuda.empty_cache()
        for max_tokens in PACKED[-1:]:
            run = f"packed_{max_tokens}"
            command = [
                *(sys.executable, "launch.py", "--config", "config/local.yaml", "--local"),
                *(f"run.name={run}", f"run.root={folder}", f"model.path={folder / 'model'}"),
                *(
                    f"data.train={folder / 'rows'}",
                    "data.max_length=4096",
                    "data.eos_tail=1",
                    "data.batching=packed",
                ),
                *(f"data.max_tokens={max_tokens}", "data.prefetch_steps=8"),
                *(f"train.max_steps={num_steps}", f"train.checkpoint_every_steps={num_steps}"),
                *(
                    "train.validate_every_steps=1000",
                    "train.precision=bf16",
                    "train.micro_batch_size=1",
                ),
                *("slurm.ranks_per_node=1", "log.tensorboard=false"),
                f"train.accelerator={'cuda' if clock.cuda else 'cpu'}",
            ]
            done = subprocess.run(
                command, cwd=report.ROOT, capture_output=True, text=True, timeout=400
            )
            metrics = folder / run / "logs/metrics.csv"
            if done.returncode or not metrics.exists():
                print(done.stdout[-3000:], done.stderr[-3000:], file=sys.stderr)
                lines.append({"run": run, "tokens/s": "failed"})
                continue
            rows = [row.split(",") for row in metrics.read_text().splitlines()]
            column = rows[0].index("tokens_per_s")
            speeds = [float(row[column]) for row in rows[1:] if row[column]]
            lines.append({"run": run, "tokens/s": round(statistics.median(speeds[2:]))})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--product", action="store_true")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    clock = Clock(torch.device(asked.device))
    dtype = torch.bfloat16 if clock.cuda else torch.float32
    config = LLaDAConfig(n_layers=asked.layers, **PRESETS[asked.preset])
    rows = examples(asked.rows, config.vocab_size)
    measured = {"arguments": {k: str(v) for k, v in vars(asked).items()}}
    measured |= report.surroundings(PACKAGES) | measure(rows, config, clock, dtype)
    report.print_table(measured["lines"])
    if clock.cuda:
        torch.cuda.empty_cache()
    if asked.profile:
        profile(rows, config, clock, dtype, asked.profile)
        if clock.cuda:
            torch.cuda.empty_cache()
    if asked.product:
        measured["product"] = product(config, clock)
        report.print_table(measured["product"])
    if asked.out:
        report.write(asked.out, measured)


if __name__ == "__main__":
    main()
