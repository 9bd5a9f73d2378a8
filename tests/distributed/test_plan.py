"""The plan's bytes against the tensors of real trainings."""

from pathlib import Path

import pytest

from llada_sft.config import load_config
from llada_sft.demo.data import write_demo
from llada_sft.model.adapter_plan import plan_adapters
from llada_sft.model.settings import architecture_of, read_settings
from llada_sft.plan.memory import Load, rank_memory
from tests.distributed.members import write_member
from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_families import of_member
from tests.distributed.test_training import CONFIG

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

WIDE = {
    "dense": {"d_model": 256, "n_heads": 4, "n_kv_heads": 4, "mlp_hidden_size": 768, "n_layers": 4},
    "moe": {
        "hidden_size": 192,
        "expert_intermediate_size": 192,
        "shared_expert_intermediate_size": 192,
        "dense_intermediate_size": 512,
        "num_experts": 8,
        "num_hidden_layers": 3,
        "moe_layer_freq": [0, 1, 1],
    },
    "llada2": {
        "hidden_size": 192,
        "intermediate_size": 512,
        "moe_intermediate_size": 192,
        "num_experts": 8,
        "num_hidden_layers": 3,
    },
}


@pytest.mark.parametrize(
    ("member", "ranks", "changes"),
    [
        ("dense", 2, ["model.activation_checkpointing=full"]),
        ("dense", 1, ["model.activation_checkpointing=selective", "train.precision=fp32"]),
        ("dense", 2, ["deepspeed.offload_optimizer=cpu"]),
        ("dense", 2, ["lora.rank=8"]),
        ("dense", 2, ["deepspeed.stage=2"]),
        ("dense", 2, ["deepspeed.stage=2", "lora.rank=8", "lora.base=nf4"]),
        ("llada2", 2, ["objective.kind=block", "objective.block_length=4"]),
        ("moe", 2, ["lora.rank=8", "model.activation_checkpointing=selective"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else str(value),
)
def test_the_peak_is_planned(
    demo: Path, tmp_path: Path, member: str, ranks: int, changes: list[str]
) -> None:
    if "lora.base=nf4" in changes:
        pytest.importorskip("bitsandbytes")
    model = write_member(member, demo / "tokenizer", tmp_path / "model", **WIDE[member])
    write_demo(tmp_path / "demo")
    overrides = [
        *of_member(model, tmp_path / "demo/data/train"),
        f"slurm.ranks_per_node={ranks}",
        "train.precision=bf16",
        "train.micro_batch_size=1",
        "train.accumulate_grad_batches=2",
        "train.max_steps=3",
        "data.batching=packed",
        "data.max_tokens=1024",
        "data.end=1",
        "deepspeed.reduce_bucket_size=200000",
        # As in a network that is larger than what is fetched ahead.
        "deepspeed.stage3_prefetch_bucket_size=100000",
        *changes,
    ]
    counted = run_on_ranks(
        "tests.distributed.plan_workers:counted_training", ranks, 200,
        folder=str(tmp_path), config_file=CONFIG, overrides=overrides,
    )  # fmt: skip
    config, network = load_config(CONFIG, overrides), architecture_of(read_settings(model))
    adapters = None if config.lora is None else plan_adapters(network, config.lora)
    kinds = [config.model.activation_checkpointing] * network.num_layers
    for rank in counted:
        load = Load(rank["tokens"], rank["masked"])
        plan = rank_memory(config, network, adapters, kinds, load, cuda=False)
        host = sum(plan.host.values())
        assert plan.peak + host == pytest.approx(rank["peak"], rel=0.1)
