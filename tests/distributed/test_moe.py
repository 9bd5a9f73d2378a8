"""Experts under ZeRO-3: balance of any ranks and accumulation, disjoint experts, buffers."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from llada_sft.config import load_config
from llada_sft.config.reader import dump_config
from llada_sft.model import load_model
from llada_sft.model.configuration import read_config
from llada_sft.model.export import export_checkpoint, zero3_tensors
from llada_sft.model.index import read_index
from llada_sft.run_dir import RunDir
from llada_sft.training.checkpoint.folder import newest_checkpoint
from llada_sft.training.export import export_run
from llada_sft.training.log.metrics_csv import read_metrics
from tests.distributed.members import write_member
from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_families import of_member
from tests.distributed.test_kills import assert_same_weights, run_until_killed
from tests.distributed.test_lora import check_exports, checkpoint_of, newest_step
from tests.distributed.test_training import CONFIG, distance, states, write_shards
from tests.distributed.test_zero import numbers, train_each
from tests.distributed.training_workers import losses

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]
GOLDEN = Path(__file__).parents[1] / "golden"
MOE, LLADA2 = "tiny_llada_moe_shared", "tiny_llada2_moe"
NUM_EXPERTS = {MOE: 6, LLADA2: 16}
WORKERS = "tests.distributed.moe_workers"


@pytest.fixture(scope="module")
def moe(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_member("moe", demo / "tokenizer", tmp_path_factory.mktemp("model") / "moe")


@pytest.fixture(scope="module")
def llada2(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_member("llada2", demo / "tokenizer", tmp_path_factory.mktemp("model") / "llada2")


def router(model: Path, state: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the routers' weights and both moments out of `states`."""
    parts, start = [], 0
    for name, shape in read_config(model).architecture.parameter_shapes().items():
        end = start + 3 * math.prod(shape)
        if name.endswith(".mlp.gate.weight"):
            parts.append(state[start:end])
        start = end
    assert len(parts) == 1
    return parts[0]


def test_the_gradient_of_routers_is_that_of_the_global_batch(
    moe: Path, demo: Path, tmp_path: Path
) -> None:
    """1 rank with 4 micro-batches, 2 with 2, 4 with 1, and resumed on others.

    Adam's moments are those of gradients.
    """
    overrides = of_member(moe, demo / "data/train")
    heavy = [*overrides, "model.router_balance_weight=5", "model.router_z_weight=0.5"]
    light = [*overrides, "model.router_balance_weight=0"]
    one, two, four = (
        router(moe, states(tmp_path / str(world_size), world_size, heavy)["after"])
        for world_size in (1, 2, 4)
    )
    assert distance(two, one) < 1e-5
    assert distance(four, one) < 1e-5
    changing = tmp_path / "changing"
    often = [*heavy, "train.checkpoint_every_steps=1"]
    states(changing, 4, often, first=0, last=2)
    resumed = router(moe, states(changing, 1, often, first=2, last=3)["after"])
    assert distance(resumed, one) < 1e-5
    without = router(moe, states(tmp_path / "light", 2, light)["after"])
    assert distance(without, one) > 0.1


@pytest.mark.parametrize(
    ("name", "leaves"),
    [(MOE, True), (MOE, False), (LLADA2, True)],
)
def test_ranks_whose_tokens_choose_disjoint_experts_do_not_hang(name: str, leaves: bool) -> None:
    ranks = run_on_ranks(
        f"{WORKERS}:disjoint_experts", 2, 180,
        model_dir=str(GOLDEN / name), num_steps=200, leaves=leaves,
    )  # fmt: skip
    assert ranks == [
        {"steps": 200, "chosen": list(range(rank, NUM_EXPERTS[name], 2))} for rank in range(2)
    ]


@pytest.mark.parametrize("name", [MOE, LLADA2])
def test_the_gradients_of_experts_in_leaves_are_those_without_zero(name: str) -> None:
    ranks = run_on_ranks(
        "tests.distributed.zero_workers:leaves_without_zero", 1, 200, model_dir=str(GOLDEN / name)
    )
    assert ranks == [{"none": [], "selective": [], "full": []}]


@pytest.mark.parametrize("name", [MOE, LLADA2])
def test_no_gathered_expert_stays_in_memory(name: str) -> None:
    """A view of a weight that was saved for the backward pass would keep it whole until then."""
    # Of one rank the gathered weight is its slice, which is always there.
    for found in run_on_ranks(
        "tests.distributed.zero_workers:compiled_leaves", 2, 200,
        model_dir=str(GOLDEN / name), compiled=False,
    ):  # fmt: skip
        for kind in found.values():
            assert kind["error"] < 1e-5
            assert kind["alive"] == [0]


def test_losses_of_any_number_of_ranks_and_the_log(moe: Path, tmp_path: Path) -> None:
    """Packed; each epoch is one step of all six rows, whichever ranks read them."""
    train = write_shards(tmp_path / "shards", [1, 1, 1, 1, 1, 1])
    overrides = [
        *of_member(moe, train),
        "objective.t_sampling=independent",
        "train.micro_batch_size=1",
        "data.batching=packed",
        "data.max_tokens=64",
        "data.end=2",
        "train.epochs=3",
        "train.max_steps=null",
    ]
    found = {}
    for world_size in (1, 2, 3):
        folder = tmp_path / str(world_size)
        run_on_ranks(
            "tests.distributed.training_workers:train_each", world_size, 200, config_file=CONFIG,
            runs=[(str(folder), [*overrides, f"train.accumulate_grad_batches={6 // world_size}"])],
        )  # fmt: skip
        found[world_size] = read_metrics(RunDir(folder).metrics)
    for rows in found.values():
        assert [row["examples"] for row in rows] == ["6"] * 3
        for row in rows:
            assert float(row["routed"]) == 1.0
            assert 1 <= float(row["expert_load"]) <= 3
            assert 0 <= float(row["experts_unused"]) < 6
            assert float(row["router_z_loss"]) > 0
        assert float(rows[0]["balance_loss"]) == pytest.approx(2.0, abs=1e-6)
        assert float(rows[2]["balance_loss"]) != pytest.approx(2.0, abs=1e-3)
        for name, close in (("loss", (1e-6, 1e-4, 1e-4)), ("gradient_norm", (1e-5, 1e-4, 1e-4))):
            for row, one, step in zip(rows, found[1], close, strict=True):
                assert float(row[name]) == pytest.approx(float(one[name]), rel=step)


@pytest.mark.parametrize("member", ["moe", "llada2"])
def test_stages_and_precisions_train_the_same(
    member: str, demo: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(member)
    overrides = [*of_member(model, demo / "data/train"), "train.max_steps=3"]
    more = {
        "1": ["deepspeed.stage=1"],
        "2": ["deepspeed.stage=2"],
        "bf16": ["train.precision=bf16", "model.activation_checkpointing=selective"],
        "3": ["deepspeed.leaf_blocks=false", "model.activation_checkpointing=full"],
    }
    runs = [(str(tmp_path / name), [*overrides, *change]) for name, change in more.items()]
    run_on_ranks(
        "tests.distributed.training_workers:train_each", 2, 240, config_file=CONFIG, runs=runs
    )
    found = {name: list(map(float, losses(tmp_path / name).values())) for name in more}
    assert len(found["3"]) == 3
    for name, close in (("1", 1e-5), ("2", 1e-5), ("bf16", 2e-2)):
        assert found[name] == pytest.approx(found["3"], rel=close)


def test_buffers_survive_an_elastic_resume_and_an_export(
    llada2: Path, demo: Path, tmp_path: Path
) -> None:
    """In bf16, too, whose 8 bits of a number are not enough for 0.3."""
    bf16 = "train.precision=bf16"
    overrides = [*of_member(llada2, demo / "data/train"), "train.max_steps=4", bf16]
    arguments = {"folder": str(tmp_path / "run"), "config_file": CONFIG, "overrides": overrides}
    run_on_ranks(f"{WORKERS}:with_a_bias", 2, 200, value=0.3, stop_at=2, **arguments)
    assert len(losses(tmp_path / "run")) < 4
    ranks = run_on_ranks(f"{WORKERS}:with_a_bias", 1, 200, value=None, stop_at=0, **arguments)
    expected = torch.full((8,), 0.3)
    assert torch.tensor(ranks[0]).equal(expected)
    assert len(losses(tmp_path / "run")) == 4
    checkpoint = newest_checkpoint(RunDir(tmp_path / "run").checkpoints)
    assert checkpoint is not None
    out, network = tmp_path / "out", read_config(llada2)
    export_checkpoint(zero3_tensors(checkpoint), network, llada2, out)
    assert read_index(out).keys() == read_index(llada2).keys()
    assert load_model(out).get_buffer("model.layers.1.mlp.gate.expert_bias").equal(expected)


def test_killed_with_experts_and_resumed_bit_for_bit(
    llada2: Path, demo: Path, tmp_path: Path
) -> None:
    given = [
        *of_member(llada2, demo / "data/train"),
        "train.max_steps=6",
        "train.checkpoint_every_steps=2",
        "train.async_checkpoints=false",
    ]
    whole, run = tmp_path / "whole", tmp_path / "killed"
    train_each({whole: given})
    run_until_killed(RunDir(run), given, [((4, 0), 200), None], tmp_path / "note")
    assert newest_step(run) == 2
    train_each({run: given})
    assert numbers(run)[-4:] == numbers(whole)[-4:]
    assert_same_weights(checkpoint_of(run), checkpoint_of(whole))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters_next_to_buffers(llada2: Path, demo: Path, tmp_path: Path) -> None:
    """LoRA of the fused matrix: both layouts of its export are one network, and PEFT's."""
    run = tmp_path / "run"
    overrides = [*of_member(llada2, demo / "data/train"), "train.max_steps=3", "lora.rank=4"]
    train_each({run: overrides})
    RunDir(run).config.write_text(dump_config(load_config(CONFIG, overrides)))
    for layout in ("official", "stacked"):
        export_run(run, tmp_path / layout, None, None, stacked=layout == "stacked")
    check_exports(run, overrides, tmp_path)
    ids = torch.arange(6, 18)[None]
    of_layouts = [load_model(tmp_path / each)(ids).logits for each in ("official", "stacked")]
    assert of_layouts[0].equal(of_layouts[1])
