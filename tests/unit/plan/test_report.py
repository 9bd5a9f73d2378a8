"""The plan's numbers against sums by hand, and the lines that a user sees."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llada_sft.cluster.launch.look.measured import measured_speed
from llada_sft.config import dump_config, load_config
from llada_sft.demo.data import write_demo
from llada_sft.errors import ConfigError, LladaSftError
from llada_sft.model.adapter_plan import plan_adapters
from llada_sft.model.families import llada, llada2, llada_moe
from llada_sft.plan.cost import checkpoint_bytes, traffic
from llada_sft.plan.fitting import MOST_NODES, fewest_nodes, largest_micro_batch
from llada_sft.plan.memory import Load, Sizes, packed_bytes, rank_memory
from llada_sft.plan.report import Assumptions, plan_lines
from llada_sft.plan.setup import Setup

ROOT = Path(__file__).parents[3]
IDS = {"mask_token_id": 5, "eos_token_id": 6, "pad_token_id": 6}
LLADA_8B = llada.FAMILY.config_json(n_layers=32, **IDS)
LLADA_MOE = llada_moe.FAMILY.config_json(
    **{**llada_moe.FAMILY.defaults, "qk_layernorm": True}, **IDS
)
LLADA2_MINI = llada2.FAMILY.config_json(**{**llada2.MINI, "mask_token_id": 156895})
# Embedding and head of 126,464 × 4,096; 32 × (4 × 4096² + 3 × 4096 × 12288 + 2 × 4096); a norm.
P_8B = 2 * 126_464 * 4096 + 32 * (4 * 4096**2 + 3 * 4096 * 12288 + 2 * 4096) + 4096


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps(LLADA_8B))
    return tmp_path / "model"


def planned(values: dict[str, Any], *changes: str) -> Setup:
    from llada_sft.model.settings import architecture_of

    config = load_config(ROOT / "config/zero3.yaml", list(changes))
    return Setup(config, architecture_of(values), None)


@pytest.mark.parametrize("nodes", [1, 4, 64])
def test_the_bytes_of_llada_8b_by_hand(nodes: int) -> None:
    """config/zero3.yaml on 8, 32 and 512 GPUs of 6,144 tokens."""
    plan = planned(LLADA_8B, f"slurm.nodes={nodes}").memory()
    ranks, tokens = 8 * nodes, 6144
    assert P_8B == 8_015_581_184
    each = -(-P_8B // ranks)
    assert plan.standing == {
        "weights": pytest.approx(2 * each, rel=1e-4),
        "optimizer": pytest.approx(12 * each, rel=1e-4),
        "gradient sums": pytest.approx(4 * each, rel=1e-4),
        "bucket": 4 * 200_000_000,
    }
    loss = plan.moments["loss"]
    # At most 1e9 weights are whole, and the 65 norms.
    assert loss["gathered weights"] == 2 * (1_000_000_000 + 65 * 4096)
    # 32 blocks keep their input, seven products and attention's result; cosines and sines; the last
    # stream, and the normalised one at the masks.
    of_block = 2 * (3 * 4096 + 4 * 4096 + 2 * 12288) + 4 * 32
    around = 8 * 128 + 2 * 4096 + (3 * 2 + 4) * 4096
    assert loss["activations"] == tokens * (32 * of_block + around)
    # 1,061 positions of logits in bf16 and fp32; the weight's gradient in fp32, and one more piece.
    piece, weight = (512 << 20) // (4 * 126_464) * 126_464, 126_464 * 4096
    assert loss["head"] == 6 * piece + 4 * weight + 2 * weight
    # DeepSpeed lays out 1e9 elements at a time.
    flat = min(4 * each, 4_000_000_000)
    assert plan.moments["optimizer step"]["flat gradients"] == pytest.approx(flat, rel=1e-4)
    assert plan.peak_moment == "loss"


# Embedding and head; 16 × (attention and its two norms, two norms, router, 64 experts); a norm.
P_7B = 2 * 157_184 * 2048 + 16 * (4 * 2048**2 + 2 * 128 + 2 * 2048 + 64 * 2048)
P_7B += 16 * 64 * 3 * 2048 * 1024 + 2048
# Of 20 layers the first is dense; 16 heads and 4 of keys and values; 256 experts and a shared one.
P_16B = 2 * 157_184 * 2048 + 20 * (2048 * 24 * 128 + 16 * 128 * 2048 + 2 * 128 + 2 * 2048)
P_16B += 3 * 2048 * 5120 + 19 * (256 * 2048 + 257 * 3 * 2048 * 512) + 2048


@pytest.mark.parametrize("nodes", [1, 4, 64])
@pytest.mark.parametrize(("values", "number"), [(LLADA_MOE, P_7B), (LLADA2_MINI, P_16B)])
def test_the_bytes_of_experts_by_hand(values: dict[str, Any], number: int, nodes: int) -> None:
    """All experts stand on the ranks; what a token computes does not matter there."""
    made = planned(values, f"slurm.nodes={nodes}")
    assert sum(made.sizes.trained) == number
    standing, ranks = made.memory().standing, 8 * nodes
    for name, each in (("weights", 2), ("optimizer", 12), ("gradient sums", 4)):
        assert standing[name] == pytest.approx(each * number / ranks, rel=2e-3)


def test_both_halves_of_a_block_objective_count() -> None:
    """Twice the activations for the same tokens, and the head at those of one half."""
    one = planned(LLADA2_MINI, "objective.allow_mismatch=true").memory().moments["loss"]
    two = planned(LLADA2_MINI, "objective.kind=block").memory().moments["loss"]
    at_masks = 6144 * 2048 * 10
    assert two["activations"] - at_masks == 2 * (one["activations"] - at_masks)
    assert two["head"] == one["head"]


def test_offloaded_inputs_of_blocks_are_on_the_host() -> None:
    checkpointing = "model.activation_checkpointing"
    full = planned(LLADA_8B, f"{checkpointing}=full").memory()
    offloaded = planned(LLADA_8B, f"{checkpointing}=offload").memory()
    inputs = 32 * 6144 * 4096 * 2
    assert (full.host, offloaded.host) == ({}, {"inputs of blocks": inputs})
    moments = [plan.moments["loss"]["activations"] for plan in (full, offloaded)]
    assert moments[0] - moments[1] == inputs


def test_blocks_with_ligers_kernels_are_not_compiled() -> None:
    assert planned(LLADA_8B).compiled
    assert not planned(LLADA_8B, "model.rope_kernel=liger").compiled


def test_states_in_8_bits() -> None:
    plain, small = planned(LLADA_8B), planned(LLADA_8B, "optim.kind=adamw_8bit")
    part = plain.memory().standing["optimizer"] / 12
    # A master, two bytes, and two scales for 256 elements.
    assert small.memory().standing["optimizer"] == pytest.approx(part * (6 + 8 / 256))
    saved = checkpoint_bytes(plain.config, plain.sizes) - checkpoint_bytes(
        small.config, small.sizes
    )
    assert saved == pytest.approx(P_8B * (6 - 8 / 256))


def test_offloaded_states_are_on_the_host() -> None:
    on_device = planned(LLADA_8B).memory()
    offloaded = planned(LLADA_8B, "deepspeed.offload_optimizer=cpu").memory()
    assert offloaded.host["optimizer"] == on_device.standing["optimizer"]
    assert set(offloaded.standing) == {"weights", "bucket"}
    both = planned(
        LLADA_8B, "deepspeed.offload_optimizer=cpu", "deepspeed.offload_param=cpu"
    ).memory()
    assert both.host["weights"] == on_device.standing["weights"]
    assert set(both.standing) == {"bucket"}


def test_low_stages_keep_whole_weights() -> None:
    made = planned(LLADA_8B, "deepspeed.stage=1").memory()
    assert made.standing["weights"] == 2 * P_8B
    assert made.moments["loss"]["gradient sums"] == 4 * P_8B
    made = planned(LLADA_8B, "deepspeed.stage=2").memory()
    assert made.moments["loss"]["gradient sums"] == pytest.approx(4 * P_8B / 32, rel=1e-4)


def with_adapters(*changes: str) -> Setup:
    made = planned(LLADA_8B, "deepspeed.stage=2", "lora.rank=16", *changes)
    assert made.config.lora is not None
    return Setup(made.config, made.network, plan_adapters(made.network, made.config.lora))


def test_a_base_in_4_bits_by_hand() -> None:
    """QLoRA's 0.5 + 1/64 + 4/(64 · 256) bytes for each weight: 4.127 bits."""
    full, nf4 = with_adapters(), with_adapters("lora.base=nf4")
    adapted = 32 * (4 * 4096**2 + 3 * 4096 * 12288)
    assert sum(nf4.sizes.packed) == adapted
    trained = sum(nf4.sizes.trained)
    assert full.memory().standing["weights"] == 2 * (P_8B + trained)
    # 7 matrices of each block have tables of 273 numbers in fp32.
    tables = 32 * 7 * 4 * 273
    in_4_bits = adapted // 2 + adapted // 64 + 4 * adapted // (64 * 256) + tables
    assert nf4.memory().standing["weights"] == 2 * (P_8B - adapted + trained) + in_4_bits
    unpacked = nf4.memory().moments["backward"]["a matrix unpacked"]
    assert unpacked == 2 * 4096 * 12288
    assert "a matrix unpacked" not in full.memory().moments["backward"]


@pytest.mark.parametrize("shape", [(96, 64), (64, 100), (7, 9), (256, 768), (1024, 4096)])
def test_the_bytes_of_a_matrix_in_4_bits_are_those_of_bitsandbytes(shape: tuple[int, int]) -> None:
    nn = pytest.importorskip("bitsandbytes.nn")
    small = nn.Linear4bit(shape[1], shape[0], bias=False, quant_type="nf4")
    small.weight = nn.Params4bit(
        torch.randn(shape).bfloat16(), requires_grad=False, quant_type="nf4", module=small
    )
    weight = small.to("cpu").weight
    state, nested = weight.quant_state, weight.quant_state.state2
    tensors = [weight.data, state.absmax, state.code, state.offset, nested.absmax, nested.code]
    assert sum(tensor.nbytes for tensor in tensors) == packed_bytes(shape[0] * shape[1])


def test_fewer_masks_need_less() -> None:
    made = planned(LLADA_8B)
    kinds = made.kinds(6144)
    few, many = (
        rank_memory(made.config, made.network, None, kinds, Load(6144, masked)).moments["loss"]
        for masked in (100, 6144)
    )
    assert few["head"] < many["head"] and few["activations"] < many["activations"]


def test_traffic_by_hand() -> None:
    sizes = Sizes((1_000_000_000, 3_000_000_000), (), (1_000_000_000,), ranks=32)
    config = planned(LLADA_8B).config
    sent = traffic(config, sizes)
    part = 31 / 32
    # Gathered twice in bf16, reduced in fp32, one micro-batch.
    assert sent.weights == pytest.approx(part * 2 * 2 * 4e9)
    assert sent.gradients == pytest.approx(part * 4 * 4e9)
    assert sent.between_nodes == pytest.approx(sent.weights + sent.gradients)
    hpz = planned(LLADA_8B, "deepspeed.zero_hpz_partition_size=8").config
    assert traffic(hpz, sizes).between_nodes == pytest.approx(sent.weights / 2 + sent.gradients)
    one_node = planned(LLADA_8B, "slurm.nodes=1").config
    assert traffic(one_node, sizes).between_nodes == 0
    assert checkpoint_bytes(config, sizes) == 14 * 4_000_000_000


@pytest.mark.parametrize("limit", [0, 255, 256, 257, 1000, 6144, 123_456])
def test_the_largest_micro_batch(limit: int) -> None:
    assert largest_micro_batch(lambda tokens: tokens <= limit) == limit // 256 * 256


@pytest.mark.parametrize("least", [1, 2, 3, 17, MOST_NODES])
def test_the_fewest_nodes(least: int) -> None:
    assert fewest_nodes(lambda nodes: nodes >= least) == least
    assert fewest_nodes(lambda nodes: False) is None


def test_what_fits_is_what_the_memory_says(model: Path) -> None:
    """The named largest micro-batch fits, and one step more does not."""
    overrides = [f"model.path={model}", "slurm.gpu_mem_gb=80"]
    config = load_config(ROOT / "config/zero3.yaml", overrides)
    lines = plan_lines(config, Assumptions(tokens=1e9))
    fits = next(n for n, line in enumerate(lines) if line.startswith("fits"))
    assert "yes" in lines[fits]
    named = int(lines[fits + 1].split("at most ")[1].split()[0].replace(",", ""))
    made = planned(LLADA_8B)
    assert made.memory(named).peak <= 72e9 < made.memory(named + 256).peak
    small = load_config(ROOT / "config/zero3.yaml", [*overrides, "slurm.gpu_mem_gb=16"])
    assert any(line.startswith("fits             no") for line in plan_lines(small, Assumptions()))


@pytest.mark.parametrize(
    ("assumed", "line"),
    [
        (Assumptions(mfu=0), "--mfu: must be above 0 and at most 1, got 0"),
        (Assumptions(mfu=40), "--mfu: must be above 0 and at most 1, got 40"),
        (Assumptions(mfu=float("nan")), "--mfu: must be above 0 and at most 1, got nan"),
        (Assumptions(tokens=-1), "--tokens: must be above 0, got -1"),
        (Assumptions(tokens=float("inf")), "--tokens: must be above 0, got inf"),
        (Assumptions(gpu="abacus"), "--gpu: no rate is known of 'abacus'; try H100, H200 or A100"),
    ],
)
def test_mistaken_assumptions(model: Path, assumed: Assumptions, line: str) -> None:
    config = load_config(ROOT / "config/zero3.yaml", [f"model.path={model}"])
    with pytest.raises(ConfigError) as error:
        plan_lines(config, assumed)
    assert str(error.value) == line


def test_a_model_that_is_not_there_is_one_line() -> None:
    config = load_config(ROOT / "config/zero3.yaml")
    with pytest.raises(LladaSftError, match=r"no config\.json"):
        plan_lines(config, Assumptions())


@pytest.mark.parametrize("shipped", sorted((ROOT / "config").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_config_has_a_plan(model: Path, tmp_path: Path, shipped: Path) -> None:
    config = load_config(shipped, [f"model.path={model}", "objective.allow_mismatch=true"])
    if config.model.size is not None:
        # Its vocabulary is the tokenizer's.
        write_demo(tmp_path)
        config = load_config(shipped, [f"model.path={tmp_path}/tokenizer"])
    assert plan_lines(config, Assumptions())[0].startswith("parameters ")


def test_the_command(model: Path, tmp_path: Path) -> None:
    """Also that neither torch nor transformers are imported for it."""
    command = [
        *(sys.executable, "-X", "importtime", "launch.py", "--config", "config/zero3.yaml"),
        *("--plan", f"model.path={model}", "--tokens", "1e9"),
        *("--measured", str(of_run(tmp_path / "run", model, ROWS))),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("parameters       8,015,581,184; stage 3, 32 ranks\n")
    assert "an epoch of 1,000,000,000 tokens" in done.stdout
    assert f"as {tmp_path}/run has measured on 16 ranks" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "transformers", "deepspeed"}


def of_run(folder: Path, path: Path, rows: str, *changes: str) -> Path:
    """Make a run directory of two attempts on 8 and 16 ranks, with metrics."""
    (folder / "logs").mkdir(parents=True)
    config = load_config(ROOT / "config/zero3.yaml", [f"model.path={path}", *changes])
    (folder / "config.yaml").write_text(dump_config(config))
    entries = [
        {"event": "started", "attempt": 1, "world_size": 8},
        {"event": "started", "attempt": 2, "world_size": 16},
        {"event": "resumed", "attempt": 2, "step": 20},
    ]
    lines = (json.dumps({"time": "2026-11-28T00:00:00+00:00", **entry}) for entry in entries)
    (folder / "journal.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "logs/metrics.csv").write_text(f"step,loss,tokens_per_s,mfu\n{rows}")
    return folder


# The first line of the second attempt is slow, one is of a validation, and one is half written.
ROWS = "10,1,999,0.9\n30,1,16,0.01\n40,1,1600,0.3\n40,1,,\n50,1,3200,0.4\n60,1,4800,0.5\n70,1,9"


def test_the_speed_of_a_run(model: Path, tmp_path: Path) -> None:
    speed = measured_speed(of_run(tmp_path / "run", model, ROWS))
    assert (speed.ranks, speed.lines) == (16, 4)
    assert (speed.tokens_per_s, speed.mfu) == (3200 / 16, 0.4)
    config = load_config(ROOT / "config/zero3.yaml", [f"model.path={model}"])
    lines = plan_lines(config, Assumptions(tokens=1e9, measured=speed))
    place = next(n for n, line in enumerate(lines) if line.startswith("time"))
    assert lines[place] == (
        f"time             30.7 s a step and 200 tokens/s for each GPU, as {tmp_path}/run has"
        " measured on 16 ranks (median of 4 log lines)"
    )
    # 1e9 tokens on 32 GPUs of 200 tokens/s.
    assert "and 43.4 h; 3 epochs 130.2 h" in lines[place + 1]


def test_the_mfu_of_a_run_of_another_network(model: Path, tmp_path: Path) -> None:
    speed = measured_speed(of_run(tmp_path / "run", model, ROWS, "lora.rank=4"))
    config = load_config(ROOT / "config/zero3.yaml", [f"model.path={model}"])
    (line,) = (
        line for line in plan_lines(config, Assumptions(measured=speed)) if line.startswith("time")
    )
    assert f"if MFU is 40% of 989 Tflop/s (NVIDIA H100): that of {tmp_path}/run, another" in line
    with pytest.raises(ConfigError) as caught:
        plan_lines(config, Assumptions(measured=replace(speed, mfu=None)))
    assert str(caught.value) == (
        f"--measured: {tmp_path}/run trains another network or other parameters of it, and its log"
        " has no MFU: take a run of this network, or --mfu"
    )


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ("", "logs/metrics.csv: has no speed of a step of the last attempt"),
        ("10,1,999,0.9\n", "logs/metrics.csv: has no speed of a step of the last attempt"),
        ("x,y\n\0,,,,,,\n50,1,fast,\n", "has no speed of a step of the last attempt"),
        (None, "logs/metrics.csv: No such file or directory"),
    ],
)
def test_a_run_without_a_speed_is_one_line(
    model: Path, tmp_path: Path, rows: str | None, line: str
) -> None:
    run = of_run(tmp_path / "run", model, rows or "")
    if rows is None:
        (run / "logs/metrics.csv").unlink()
    with pytest.raises(ConfigError) as error:
        measured_speed(run)
    assert str(error.value).startswith("--measured: ") and str(error.value).endswith(line)
    with pytest.raises(ConfigError, match=r"not a run directory: it has no config\.yaml"):
        measured_speed(tmp_path / "nowhere")
