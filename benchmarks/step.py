"""One micro-batch's forward and backward pass: real tokens per second, memory, and where it goes.

    python benchmarks/step.py [--device cuda] [--preset llada8b-width] [--layers 4] [--rows 24]
        [--ways ours|others] [--compile] [--profile FILE] [--product] [--out FILE]

benchmarks/ways.py describes the ways that are compared: `ours`, each choice of activation
checkpointing, or `others`, the recipes of others next to ours. `product` is the same rows through
launch.py (Lightning, ZeRO-3, AdamW, one rank): tokens per second of whole optimizer steps, from the
run's metrics.csv.

Rows have chat-like lengths (log-normal, a quarter is the prompt), and the noise is the training's.
No optimizer, but for `product`. Every line computes the same rows, except that packs shorter than
the longest row skip those that do not fit. "out of memory" is a result.

real/s    tokens of the rows, without any that were added, per second
floor %   the share of the time that the matrix products take by themselves: those of the network's
          layers on all positions of the way, and the head's where it runs, each timed at its shape
          with up to 2,048 positions in the same run; attention's own products are not in it
MFU %     what the model needs, not what is computed: for a row of L tokens, M of them masked,
              6 · P · L + 12 · layers · d · L² + 6 · V · d · M
          operations, with P the parameters of the blocks; divided by the time and by the rate of
          one large matrix product of the same run ("bare GEMM")
MB        the peak above the weights and their gradients (on a CPU, of tensors, as torch's profiler
          counts them in one more pass: the process's own peak depends on what it used before)
speed-up  real/s over that of the first line
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))

import chat_rows
import report
import torch
import ways
from ways import Way

from llada_sft.data.examples.encode import Example
from llada_sft.model import Network, NetworkConfig
from llada_sft.model.families import llada
from llada_sft.model.flops import needed_operations
from llada_sft.training.masks.micro_batch import MicroBatch

PACKAGES = ("torch", "lightning", "deepspeed", "transformers", "triton")
PRESETS: dict[str, dict[str, int]] = {
    "tiny": {"d_model": 64, "n_heads": 2, "mlp_hidden_size": 128, "vocab_size": 512},
    "small": {"d_model": 512, "n_heads": 8, "mlp_hidden_size": 1536, "vocab_size": 4096},
    # As small, with LLaDA's vocabulary.
    "wide-head": {"d_model": 512, "n_heads": 8, "mlp_hidden_size": 1536},
    "llada8b-width": {},  # The 8B's.
}
PACKED = (2048, 4096, 8192, 16384)
PACKED_ON_CPU = (2048, 4096, 8192)
MB = 1e6
# Positions at which matrix products are timed, at most.
SAMPLED = 2048
MEASURED = ("real/s", "all/s", "ms", "MB", "floor %", "MFU %", "speed-up")
Line = dict[str, Any]


def network(config: NetworkConfig, device: torch.device, dtype: torch.dtype) -> Network:
    """Make a network with random weights, on its device from the start."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = Network(config)
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

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """Return the most bytes in use during some work, above those before it."""
        if not self.cuda:
            return _peak_of_tensors(work)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before


def _peak_of_tensors(work: Callable[[], object]) -> int:
    """Count the allocations and releases of torch's allocator on the CPU."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profile.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    in_use: dict[int, int] = {}
    total = peak = 0
    for change in sorted(changes, key=lambda event: event["ts"]):
        # By address: the profiler does not see each release.
        address, size = change["args"]["Addr"], change["args"]["Bytes"]
        total += max(size, 0) - in_use.pop(address, 0)
        if size > 0:
            in_use[address] = size
        peak = max(peak, total)
    return peak


def gemm_rate(clock: Clock, dtype: torch.dtype) -> float:
    """Return the operations per second of one large matrix product."""
    size = 8192 if clock.cuda else 2048
    a, b = (torch.randn(size, size, device=clock.device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    return 2 * size**3 / statistics.median(clock.seconds(lambda: a @ b) for _ in range(10))


class Floor:
    """How long the matrix products of a way take by themselves."""

    def __init__(self, config: NetworkConfig, clock: Clock, dtype: torch.dtype) -> None:
        self._config, self._clock, self._dtype = config, clock, dtype

    def seconds(self, batches: list[MicroBatch], full_head: bool) -> float:
        """Time each product at up to 2,048 positions; it scales with them."""
        network, first = self._config.architecture, batches[0]
        width, kv_width = network.width, network.num_kv_heads * network.head_dim
        sizes = [(width, width)] * 2 + [(width, kv_width)] * 2
        sizes += [(width, network.mlp_size)] * 2 + [(network.mlp_size, width)]
        times: dict[tuple[int, int], float] = {}
        positions = min(first.noisy_ids.numel(), SAMPLED)
        for size in set(sizes):
            times[size] = self._product(positions, *size)
        of_layers = network.num_layers * sum(times[size] for size in sizes)
        seconds = of_layers * sum(b.noisy_ids.numel() for b in batches) / positions
        in_head = [b.noisy_ids.numel() if full_head else len(b.positions) for b in batches]
        sampled = min(in_head[0], SAMPLED)
        of_head = self._product(sampled, width, network.num_embeddings)
        return seconds + of_head * sum(in_head) / sampled

    def _product(self, positions: int, inputs: int, outputs: int) -> float:
        """Time x · Wᵀ, g · W and gᵀ · x of [positions, inputs] and [outputs, inputs]."""
        make = {"device": self._clock.device, "dtype": self._dtype}
        x, weight = torch.randn(positions, inputs, **make), torch.randn(outputs, inputs, **make)
        g = torch.randn(positions, outputs, **make)
        g_in, x_out = torch.empty_like(x), torch.empty_like(weight)
        y = torch.empty_like(g)

        def work() -> None:
            torch.mm(x, weight.T, out=y)
            torch.mm(g, weight, out=g_in)
            torch.mm(g.T, x, out=x_out)

        work()
        return statistics.median(self._clock.seconds(work) for _ in range(3))


def measure(
    rows: list[Example],
    config: NetworkConfig,
    clock: Clock,
    dtype: torch.dtype,
    chosen: list[Way],
    repeat: int,
) -> Any:
    """Measure each way."""
    rate = gemm_rate(clock, dtype)
    print(f"bare GEMM: {rate / 1e12:,.2f} Tflop/s\n")
    floor = Floor(config, clock, dtype)
    model = network(config, clock.device, dtype)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    compiled = False
    lines: list[Line] = []
    # Those that are compiled come last: it cannot be undone.
    for way in chosen:
        if way.compiled and not compiled:
            model.compile_blocks()
            compiled = True
        model.set_activation_checkpointing(way.checkpointing)
        lines.append(measure_one(way, rows, config, model, clock, floor, rate, repeat))
        print(lines[-1], file=sys.stderr)
    for line in lines:
        first = lines[0].get("real/s")
        numbers = isinstance(first, int) and isinstance(line["real/s"], int)
        line["speed-up"] = round(line["real/s"] / first, 2) if numbers else "not measured"
    return {"gemm_flops_per_s": rate, "lines": lines}


def measure_one(
    way: Way,
    rows: list[Example],
    config: NetworkConfig,
    model: Network,
    clock: Clock,
    floor: Floor,
    rate: float,
    repeat: int,
) -> Line:
    """Measure one way."""
    group = [
        row for row in rows if way.most_tokens is None or len(row.input_ids) <= way.most_tokens
    ]
    batches = [batch.to(clock.device) for batch in ways.micro_batches(way, group, config)]
    line: Line = {"way": way.name, "micro-batches": len(batches)}

    def one_pass() -> None:
        for batch in batches:
            way.run(model, batch)

    try:
        way.run(model, batches[0])
        seconds = statistics.median(clock.seconds(one_pass) for _ in range(repeat))
        peak = clock.peak_bytes(one_pass)
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return line | dict.fromkeys(MEASURED, "out of memory")
    least = floor.seconds(batches, way.run is ways.full_logits)
    real = sum(len(row.input_ids) for row in group)
    squares = sum(len(row.input_ids) ** 2 for row in group)
    needed = needed_operations(
        config.architecture, real, squares, sum(len(b.positions) for b in batches)
    )
    return line | {
        "real/s": round(real / seconds),
        "all/s": round(sum(batch.noisy_ids.numel() for batch in batches) / seconds),
        "ms": round(1e3 * seconds / len(batches), 1),
        "MB": round(peak / MB),
        "floor %": round(100 * least / seconds, 1),
        "MFU %": round(100 * needed / seconds / rate, 1),
    }


def profile(
    rows: list[Example], config: NetworkConfig, clock: Clock, dtype: torch.dtype, out: Path
) -> None:
    """Write the operations of one packed micro-batch, the longest first."""
    model = network(config, clock.device, dtype)
    most = (PACKED if clock.cuda else PACKED_ON_CPU)[-1]
    way = Way("profile", ways.packed(most), ways.ours, most)
    batch = ways.micro_batches(way, rows, config)[0].to(clock.device)
    way.run(model, batch)
    with torch.profiler.profile() as recorded:
        way.run(model, batch)
        if clock.cuda:
            torch.cuda.synchronize()
    by = "self_cuda_time_total" if clock.cuda else "self_cpu_time_total"
    table = recorded.key_averages().table(sort_by=by, row_limit=40, max_name_column_width=90)
    out.write_text(table)


def product(config: NetworkConfig, clock: Clock, num_steps: int = 12) -> list[Line]:
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
                    "data.end=1",
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
    parser.add_argument("--mean-tokens", type=int, default=764, help="of a row")
    parser.add_argument("--most-tokens", type=int, default=4096, help="of a row")
    parser.add_argument("--ways", choices=("ours", "others"), default="ours")
    parser.add_argument("--compile", action="store_true", help="measure compiled blocks, too")
    parser.add_argument("--packed", type=int, nargs="*", help="tokens of packs")
    parser.add_argument("--repeat", type=int, default=3, help="passes; the median counts")
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--product", action="store_true")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    clock = Clock(torch.device(asked.device))
    dtype = torch.bfloat16 if clock.cuda else torch.float32
    config = NetworkConfig(llada.FAMILY.config_json(n_layers=asked.layers, **PRESETS[asked.preset]))
    rows = ways.examples(asked.rows, config.vocab_size, asked.mean_tokens, asked.most_tokens)
    packed = tuple(asked.packed or (PACKED if clock.cuda else PACKED_ON_CPU))
    if asked.ways == "others":
        chosen = list(ways.compared_with_others(8, packed, asked.compile))
    else:
        chosen = list(ways.ours_only(packed, asked.compile))
    measured = {"arguments": {k: str(v) for k, v in vars(asked).items()}}
    measured |= report.surroundings(PACKAGES) | measure(
        rows, config, clock, dtype, chosen, asked.repeat
    )
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
