"""ZeRO's settings change how the work is divided, and not what is trained: 2 gloo ranks."""

import shutil
from pathlib import Path

import pytest
import torch

from llada_sft.config import load_config
from llada_sft.demo.data import write_demo
from llada_sft.model.export import export_checkpoint, network_tensors
from llada_sft.model.loading import build_model
from llada_sft.run_dir import RunDir
from llada_sft.training.build_network import resolve_network
from llada_sft.training.log.metrics_csv import read_metrics
from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_training import CONFIG, SMALL

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
GOLDEN = Path(__file__).parents[1] / "golden" / "tiny_llada"
WORKERS = "tests.distributed.zero_workers"
TRAIN_EACH = "tests.distributed.training_workers:train_each"


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Six steps with a validation in the middle, every parameter partitioned."""
    demo = tmp_path_factory.mktemp("demo")
    write_demo(demo)
    return [
        *SMALL,
        f"model.path={demo / 'tokenizer'}",
        f"data.train={demo / 'data/train'}",
        f"data.validation={demo / 'data/heldout'}",
        "train.max_steps=6",
        "train.validate_every_steps=3",
        "train.validation_max_rows=8",
        "deepspeed.stage3_param_persistence_threshold=0",
    ]


@pytest.fixture(scope="module")
def pretrained(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The same with a network that is read from files, not drawn at random."""
    network = resolve_network(load_config(CONFIG, overrides).model)
    model_dir = tmp_path_factory.mktemp("model") / "model"
    tokenizer = Path(load_config(CONFIG, overrides).model.path)
    tensors = network_tensors(build_model(network, seed=3))
    export_checkpoint(tensors, network, tokenizer, model_dir, torch.float32)
    read = [f"model.path={model_dir}", "model.init=pretrained", "model.size=null"]
    return [*(each for each in overrides if not each.startswith("model.")), *read]


def numbers(run: Path) -> list[tuple[str, ...]]:
    """Losses, norms and validation losses of all steps, every digit as it was written."""
    rows = read_metrics(RunDir(run).metrics)
    return [(row["loss"], row["gradient_norm"], row["validation_loss"]) for row in rows]


def same(one: list[tuple[str, ...]], other: list[tuple[str, ...]], close: float) -> bool:
    """Whether all numbers of two runs are relatively as close."""
    values = [[float(text or 0) for row in rows for text in row] for rows in (one, other)]
    return values[0] == pytest.approx(values[1], rel=close)


def train_each(runs: dict[Path, list[str]], world_size: int = 2) -> None:
    """Train these runs, one after the other in the same processes."""
    run_on_ranks(
        TRAIN_EACH, world_size, 200,
        config_file=CONFIG, runs=[(str(run), overrides) for run, overrides in runs.items()],
    )  # fmt: skip


def test_the_gradients_of_blocks_that_are_leaves_are_those_without_zero() -> None:
    """Bit for bit: hooks for each module would add up a tensor's gradients in another order."""
    ranks = run_on_ranks(f"{WORKERS}:leaves_without_zero", 1, 200, model_dir=str(GOLDEN))
    assert ranks == [{"none": [], "selective": [], "full": []}]


def test_compiled_blocks_have_the_same_gradients_and_keep_no_gathered_weight() -> None:
    """A weight that the compiled function saved would stay whole until the backward pass."""
    # Of one rank the gathered weight is its slice, which is always there.
    for found in run_on_ranks(f"{WORKERS}:compiled_leaves", 2, 280, model_dir=str(GOLDEN)):
        assert found.keys() == {"none", "selective", "full"}
        for kind in found.values():
            assert kind["error"] < 1e-5
            assert kind["alive"] == [0]


@pytest.mark.parametrize(("precision", "close"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_blocks_that_are_leaves_train_the_same(
    precision: str, close: float, overrides: list[str], tmp_path: Path
) -> None:
    given = [*overrides, f"train.precision={precision}"]
    recompute = "model.activation_checkpointing"
    runs = {
        tmp_path / "leaves": [*given, f"{recompute}=false"],
        tmp_path / "recomputed": [*given, f"{recompute}=true"],
        tmp_path / "modules": [*given, f"{recompute}=true", "deepspeed.leaf_blocks=false"],
    }
    train_each(runs)
    leaves, recomputed, modules = map(numbers, runs)
    assert len(leaves) == 8
    assert recomputed == leaves
    assert same(modules, leaves, close)


def test_an_optimizer_on_the_cpu_trains_the_same(overrides: list[str], tmp_path: Path) -> None:
    offload = [*overrides, "deepspeed.offload_optimizer=cpu", "slurm.cpus_per_rank=2"]
    here, there = tmp_path / "here", tmp_path / "there"
    train_each({here: overrides, there: offload})
    assert same(numbers(there), numbers(here), 1e-6)


HPZ = "deepspeed.zero_hpz_partition_size=2"


@pytest.mark.parametrize("frozen", [False, True])
def test_hpz_trains_the_same_from_the_first_step(
    frozen: bool, pretrained: list[str], tmp_path: Path
) -> None:
    """From files, and again from a checkpoint; each run in fresh processes."""

    def train(run: Path, *more: str, stop_at: int = 0) -> list[tuple[str, ...]]:
        run_on_ranks(
            f"{WORKERS}:trained", 2, 120,
            config_file=CONFIG, folder=str(run), overrides=[*pretrained, *more],
            frozen=frozen, stop_at=stop_at,
        )  # fmt: skip
        return numbers(run)

    plain = train(tmp_path / "plain")
    assert len(plain) == 8
    assert train(tmp_path / "hpz", HPZ) == plain
    run = tmp_path / "stopped"
    assert len(train(run, HPZ, stop_at=3)) < 6
    assert train(run, HPZ) == plain


def test_hpz_loads_a_checkpoint_of_another_number_of_ranks(
    pretrained: list[str], tmp_path: Path
) -> None:
    run, same_run = tmp_path / "run", tmp_path / "same"
    arguments = {"config_file": CONFIG, "frozen": False}
    run_on_ranks(
        f"{WORKERS}:trained", 1, 120, folder=str(run), overrides=pretrained, stop_at=3, **arguments
    )
    shutil.copytree(run, same_run, symlinks=True)
    for folder, more in ((run, []), (same_run, [HPZ])):
        run_on_ranks(
            f"{WORKERS}:trained", 2, 120,
            folder=str(folder), overrides=[*pretrained, *more], stop_at=0, **arguments,
        )  # fmt: skip
    assert len(numbers(run)) == 8
    assert numbers(same_run) == numbers(run)
