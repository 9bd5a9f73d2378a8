"""ZeRO's settings change how the work is divided, and not what is trained: 2 gloo ranks."""

import shutil
from pathlib import Path

import pytest
import torch

from llada_sft.config import load_config
from llada_sft.demo.data import write_demo
from llada_sft.model.export import export_checkpoint, network_tensors, zero3_tensors
from llada_sft.model.loading import build_model
from llada_sft.run_dir import RunDir
from llada_sft.training.build_network import resolve_network
from llada_sft.training.checkpoint.folder import newest_checkpoint
from llada_sft.training.checkpoint.verify import Share, examine
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
        tmp_path / "offloaded": [*given, f"{recompute}=offload"],
        tmp_path / "modules": [*given, f"{recompute}=true", "deepspeed.leaf_blocks=false"],
    }
    train_each(runs)
    leaves, recomputed, offloaded, modules = map(numbers, runs)
    assert len(leaves) == 8
    assert recomputed == offloaded == leaves
    assert same(modules, leaves, close)


def test_how_gradients_are_reduced_changes_roundings_alone(
    overrides: list[str], tmp_path: Path
) -> None:
    runs = {
        tmp_path / "fp32": overrides,
        tmp_path / "plain": [
            *overrides,
            "deepspeed.overlap_comm=false",
            "deepspeed.contiguous_gradients=false",
            "deepspeed.reduce_bucket_size=1000",
        ],
        tmp_path / "bf16": [*overrides, "deepspeed.reduce_dtype=bf16"],
    }
    train_each(runs)
    fp32, plain, bf16 = map(numbers, runs)
    assert same(plain, fp32, 1e-5)
    assert same(bf16, fp32, 2e-2)
    assert not same(bf16, fp32, 1e-5)


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


@pytest.mark.parametrize(("precision", "close"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_all_stages_train_the_same(
    precision: str, close: float, overrides: list[str], tmp_path: Path
) -> None:
    given = [*overrides, f"train.precision={precision}"]
    runs = {tmp_path / str(stage): [*given, f"deepspeed.stage={stage}"] for stage in (1, 2, 3)}
    train_each(runs)
    one, two, three = map(numbers, runs)
    assert len(three) == 8
    assert same(one, three, close)
    assert same(two, three, close)


def exported(run: Path) -> list[float]:
    """All weights of the newest checkpoint, as an export takes them."""
    newest = newest_checkpoint(RunDir(run).checkpoints)
    assert newest is not None
    assert examine(newest, Share(0, 1), {}) == []
    tensors = zero3_tensors(newest)
    return torch.cat([tensors[name].read().flatten() for name in sorted(tensors)]).tolist()


@pytest.mark.parametrize(("stage", "precision"), [(1, "fp32"), (1, "bf16"), (2, "bf16")])
def test_stages_1_and_2_resume_bit_for_bit(
    stage: int, precision: str, overrides: list[str], tmp_path: Path
) -> None:
    run_on_ranks(
        "tests.distributed.training_workers:interrupted_runs", 2, 200,
        folder=str(tmp_path), config_file=CONFIG, stops=[3],
        overrides=[*overrides, f"deepspeed.stage={stage}", f"train.precision={precision}"],
    )  # fmt: skip
    whole = numbers(tmp_path / "whole")
    assert len(whole) == 8
    assert numbers(tmp_path / "stopped_3") == whole
    assert exported(tmp_path / "stopped_3") == exported(tmp_path / "whole")


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_all_stages_resume_on_another_number_of_ranks(
    before: int, after: int, overrides: list[str], tmp_path: Path
) -> None:
    for stage in (1, 2, 3):
        for world_size, stop_at in ((before, 3), (after, 0)):
            run_on_ranks(
                f"{WORKERS}:trained", world_size, 120,
                config_file=CONFIG, folder=str(tmp_path / str(stage)),
                overrides=[*overrides, f"deepspeed.stage={stage}"], frozen=False, stop_at=stop_at,
            )  # fmt: skip
    one, two, three = (tmp_path / str(stage) for stage in (1, 2, 3))
    assert len(numbers(three)) == 8
    for run in (one, two):
        assert same(numbers(run), numbers(three), 1e-5)
        assert exported(run) == pytest.approx(exported(three), abs=1e-5)


def test_stage_1_reduces_once_per_step(overrides: list[str], tmp_path: Path) -> None:
    """In bf16, where the sums are kept in fp32 next to the gradients."""
    given = [*overrides, "train.precision=bf16", "train.max_steps=2", "data.validation=null"]
    given += ["train.accumulate_grad_batches=3"]
    runs = {str(stage): [*given, f"deepspeed.stage={stage}"] for stage in (1, 2)}
    ranks = run_on_ranks(
        f"{WORKERS}:reductions", 2, 120, folder=str(tmp_path), config_file=CONFIG, runs=runs
    )
    for rank in ranks:
        each = rank["1"][2]
        assert each > 10_000
        assert rank == {"1": [0, 0, each, 0, 0, each], "2": [each] * 6}
