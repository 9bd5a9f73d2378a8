"""LoRA under ZeRO: 2 gloo ranks, and PEFT itself."""

import shutil
from pathlib import Path

import peft
import pytest
import torch

from llada_sft.config import load_config
from llada_sft.config.reader import dump_config
from llada_sft.demo.data import write_demo
from llada_sft.model.configuration import read_config
from llada_sft.model.export import export_checkpoint, network_tensors
from llada_sft.model.loading import build_model, load_model
from llada_sft.run_dir import RunDir
from llada_sft.training.build_network import plan_training, resolve_network
from llada_sft.training.checkpoint.folder import newest_checkpoint
from llada_sft.training.checkpoint.manifest import read_manifest
from llada_sft.training.export import export_run
from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_kills import assert_same_weights, run_until_killed
from tests.distributed.test_training import CONFIG, SMALL, distance, states
from tests.distributed.test_zero import GOLDEN, numbers, same, train_each
from tests.doc_commands import call_shell, commands_of

WORKERS = "tests.distributed.lora_workers"
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Six steps of a network that is read from files, every parameter partitioned."""
    demo = tmp_path_factory.mktemp("demo")
    write_demo(demo)
    data = [
        f"data.train={demo / 'data/train'}",
        f"data.validation={demo / 'data/heldout'}",
        "train.max_steps=6",
        "train.validate_every_steps=3",
        "train.validation_max_rows=8",
        "deepspeed.stage3_param_persistence_threshold=0",
        "lora.rank=4",
    ]
    random = [*SMALL, f"model.path={demo / 'tokenizer'}", *data]
    network = resolve_network(load_config(CONFIG, random).model)
    model_dir = demo / "model"
    tensors = network_tensors(build_model(network, seed=3))
    export_checkpoint(tensors, network, demo / "tokenizer", model_dir, torch.float32)
    read = [f"model.path={model_dir}", "model.init=pretrained", "model.size=null"]
    return [*(each for each in SMALL if not each.startswith("model.")), *data, *read]


RECOMPUTE = "model.activation_checkpointing"


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_recomputed_leaf_blocks_train_the_same(
    kind: str, overrides: list[str], tmp_path: Path
) -> None:
    """Losses, norms and validation losses, every digit; though all of a block's own is frozen."""
    given = [*overrides, f"lora.dora={str(kind == 'dora').lower()}"]
    runs = {
        tmp_path / "kept": [*given, f"{RECOMPUTE}=none"],
        tmp_path / "full": [*given, f"{RECOMPUTE}=full"],
    }
    if kind == "lora":
        runs |= {
            tmp_path / "selective": [*given, f"{RECOMPUTE}=selective"],
            tmp_path / "modules": [*given, f"{RECOMPUTE}=full", "deepspeed.leaf_blocks=false"],
        }
    train_each(runs)
    kept, *others = map(numbers, runs)
    assert len(kept) == 8
    assert float(kept[-3][0]) < float(kept[0][0])
    for other in others[:2]:
        assert other == kept
    for modules in others[2:]:
        assert same(modules, kept, 1e-5)


def test_compiled_leaf_blocks_have_the_gradients_without_zero() -> None:
    """And keep no gathered weight until the backward pass."""
    for found in run_on_ranks(f"{WORKERS}:compiled_leaves", 2, 280, model_dir=str(GOLDEN)):
        assert found.keys() == {"none", "full"}
        for kind in found.values():
            assert kind["gathered"] > 0
            assert kind["error"] < 1e-5
            assert kind["alive"] == 0


def test_states_have_the_bytes_that_docs_say(overrides: list[str], tmp_path: Path) -> None:
    """docs/lora.md: 2 · P weights, and of A trained ones 2 + 4 + 12 bytes, divided by the ranks."""
    given = [*overrides, "train.precision=bf16", "train.max_steps=3"]
    stages = (3, 2, 1)
    runs = {tmp_path / str(stage): [*given, f"deepspeed.stage={stage}"] for stage in stages}
    counted = run_on_ranks(
        f"{WORKERS}:state_bytes", 2, 200,
        config_file=CONFIG, runs=[(str(run), overrides) for run, overrides in runs.items()],
    )  # fmt: skip
    config = load_config(CONFIG, given)
    plan = plan_training(config, resolve_network(config.model))
    assert plan is not None
    base, trained, ranks = plan.num_base, plan.num_trained, 2
    for of_rank in counted:
        zero3, *others = of_rank
        assert zero3 == {
            "frozen": 2 * base // ranks,
            "adapters": 2 * trained // ranks,
            "gradients": 4 * trained // ranks,
            "optimizer": 12 * trained // ranks,
            "leaves": 2,
        }
        for each in others:
            assert (each["frozen"], each["adapters"]) == (2 * base, 2 * trained)
            # Groups are padded to a multiple of what NCCL likes.
            assert each["optimizer"] == pytest.approx(12 * trained / ranks, abs=12 * 64)
    of_3, of_2, of_1 = map(numbers, runs)
    assert len(of_3) == 4
    assert same(of_2, of_3, 2e-2)
    assert same(of_1, of_3, 2e-2)
    # Checkpoints hold adapters alone: their states, and what Lightning and DeepSpeed say of a run.
    for run in runs:
        checkpoint = newest_checkpoint(RunDir(run).checkpoints)
        assert checkpoint is not None
        size = sum(file.stat().st_size for file in checkpoint.rglob("*.pt"))
        assert size < 14 * trained + 80_000


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_killed_resumed_and_exported(overrides: list[str], tmp_path: Path) -> None:
    """Bit for bit; then PEFT loads the adapter, and another base is refused."""
    given = [
        *overrides,
        "train.checkpoint_every_steps=2",
        "train.async_checkpoints=false",
        f"{RECOMPUTE}=selective",
    ]
    whole, run = tmp_path / "whole", tmp_path / "killed"
    train_each({whole: given})
    run_until_killed(RunDir(run), given, [((4, 0), 200), None], tmp_path / "note")
    assert newest_step(run) == 2
    train_each({run: given})
    assert numbers(run)[-4:] == numbers(whole)[-4:]
    assert_same_weights(checkpoint_of(run), checkpoint_of(whole))
    check_exports(run, given, tmp_path)

    other = tmp_path / "other"
    shutil.copytree(value_of(given, "model.path"), other)
    train_each({run: [*given, f"model.path={other}", "train.max_steps=7"]})
    assert newest_step(run) == 7
    network = read_config(other)
    tensors = network_tensors(build_model(network, seed=4))
    shutil.rmtree(other)
    export_checkpoint(tensors, network, value_of(given, "model.path"), other, torch.float32)
    lines = run_on_ranks(
        f"{WORKERS}:refused", 2, 120,
        folder=str(run), config_file=CONFIG,
        overrides=[*given, f"model.path={other}", "train.max_steps=8"],
    )  # fmt: skip
    (line,) = set(lines)
    assert "step_7: passed over: is of adapters for other weights of the network" in line
    assert "give the run the network that they were trained with" in line


def check_exports(run: Path, given: list[str], folder: Path) -> None:
    """Merged, the network computes what PEFT does with the adapter on the base."""
    RunDir(run).config.write_text(dump_config(load_config(CONFIG, given)))
    (folder / "runs").mkdir()
    (folder / "runs/my-lora").symlink_to(run)
    for command in commands_of("docs/lora.md"):
        call_shell(command, folder)
    base = load_model(value_of(given, "model.path"))
    ids = torch.arange(6, 18)[None]
    with torch.no_grad():
        before = base(ids).logits
        adapted = peft.PeftModel.from_pretrained(base, folder / "out/adapter")(ids).logits
        merged = load_model(folder / "out/merged")(ids).logits
    assert (adapted - before).abs().max() > 1e-3
    assert (merged - adapted).abs().max() < 1e-5 * adapted.abs().max()


def value_of(overrides: list[str], key: str) -> Path:
    return Path(next(each for each in overrides if each.startswith(f"{key}=")).partition("=")[2])


def checkpoint_of(run: Path) -> Path:
    newest = newest_checkpoint(RunDir(run).checkpoints)
    assert newest is not None
    return newest


def newest_step(run: Path) -> int:
    return int(read_manifest(checkpoint_of(run))["step"])


@pytest.mark.parametrize("stage", [3, 1])
def test_another_number_of_ranks_takes_it_up(
    stage: int, overrides: list[str], tmp_path: Path
) -> None:
    given = [
        *overrides,
        f"deepspeed.stage={stage}",
        "data.validation=null",
        "train.checkpoint_every_steps=1",
        "lora.dora=true",
    ]
    whole = states(tmp_path / "whole", 3, given, last=2, examples=6)
    changing = tmp_path / "changing"
    three = states(changing, 3, given, first=0, last=1, examples=6)
    two = states(changing, 2, given, first=1, last=2, examples=6)
    assert distance(two["before"], three["after"]) < 1e-6
    # The first gradients of A are tiny: Adam makes steps of them as large as any, roundings too.
    assert distance(two["after"], whole["after"]) < 1e-5
    assert distance(two["after"] - whole["before"], whole["after"] - whole["before"]) < 1e-4


def test_an_adapter_that_does_not_learn_ends_the_run(overrides: list[str], tmp_path: Path) -> None:
    lines = run_on_ranks(
        f"{WORKERS}:dead_adapters", 2, 120,
        folder=str(tmp_path / "run"), config_file=CONFIG, overrides=overrides,
    )  # fmt: skip
    (line,) = set(lines)
    assert line == (
        "step 1: adapters without a gradient:"
        " model.transformer.blocks.1.up_proj.lora_B.default.weight: they would never learn;"
        " remove them from lora.targets"
    )


def test_hpz_trains_the_same(overrides: list[str], tmp_path: Path) -> None:
    """The ranks of a node gather their own copy of the frozen weights."""
    plain, hpz = tmp_path / "plain", tmp_path / "hpz"
    given = [*overrides, f"{RECOMPUTE}=full", "train.max_steps=3"]
    train_each({plain: given})
    # In processes of its own: DeepSpeed makes its groups once.
    train_each({hpz: [*given, "deepspeed.zero_hpz_partition_size=2"]})
    assert numbers(hpz) == numbers(plain)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_base_in_4_bits(stage: int, overrides: list[str], tmp_path: Path) -> None:
    """QLoRA: it trains, resumes bit for bit, and its adapter is exported."""
    pytest.importorskip("bitsandbytes")
    given = [
        *overrides,
        f"deepspeed.stage={stage}",
        "lora.base=nf4",
        "lora.dora=true",
        f"{RECOMPUTE}=full",
        "train.async_checkpoints=false",
    ]
    whole, run = tmp_path / "whole", tmp_path / "resumed"
    full = [*overrides, f"deepspeed.stage={stage}", "lora.dora=true"]
    train_each({whole: given, tmp_path / "full": full})
    for stop_at in (4, 0):
        run_on_ranks(
            "tests.distributed.zero_workers:trained", 2, 200,
            config_file=CONFIG, folder=str(run), overrides=given, frozen=False, stop_at=stop_at,
        )  # fmt: skip
    assert len(numbers(whole)) == 8
    # The validation at the step of the stop is made when the run resumes.
    steps = [[row for row in numbers(each) if row[0]] for each in (run, whole)]
    assert steps[0] == steps[1]
    assert len(steps[0]) == 6
    # Other than in full precision, but not by much.
    first, expected = float(numbers(whole)[0][0]), float(numbers(tmp_path / "full")[0][0])
    assert 0 < abs(first - expected) < 0.1 * expected
    RunDir(run).config.write_text(dump_config(load_config(CONFIG, given)))
    export_run(run, tmp_path / "adapter", None, None, adapter=True)
    assert (tmp_path / "adapter/adapter_model.safetensors").stat().st_size > 10_000
