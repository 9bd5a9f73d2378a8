"""A network that is born partitioned holds exactly its slices, and reads nothing else."""

from pathlib import Path

import pytest
import torch

from llada_sft.model import NetworkConfig, load_model
from llada_sft.model.configuration import read_config
from llada_sft.model.export import export_checkpoint, network_tensors, zero3_tensors
from llada_sft.model.index import read_index
from llada_sft.model.loading import build_model
from tests.distributed.ranks import run_on_ranks

pytestmark = pytest.mark.distributed
GOLDEN = Path(__file__).parents[1] / "golden" / "tiny_llada"
WORKERS = "tests.distributed.loading_workers"


def tensor_bytes(model_dir: Path) -> int:
    return sum(slot.num_bytes for slot in read_index(model_dir).values())


@pytest.mark.parametrize(("world_size", "bf16"), [(2, False), (3, True)])
def test_slices_are_those_of_the_whole_network(world_size: int, bf16: bool) -> None:
    """Read from a checkpoint, and drawn at random."""
    bytes_read = run_on_ranks(
        f"{WORKERS}:born_partitioned", world_size, 240, model_dir=str(GOLDEN), bf16=bf16
    )
    assert sum(bytes_read) == tensor_bytes(GOLDEN)


def test_a_step_with_recomputation_and_the_export_of_its_checkpoint(tmp_path: Path) -> None:
    training, out = tmp_path / "step_1", tmp_path / "export"
    errors = run_on_ranks(f"{WORKERS}:one_step", 2, 240, model_dir=str(GOLDEN), out=str(training))
    assert max(errors) < 1e-5
    export_checkpoint(zero3_tensors(training), read_config(GOLDEN), GOLDEN, out, torch.float32)
    exported, official = load_model(out), load_model(GOLDEN)
    for name, parameter in official.named_parameters():
        assert torch.equal(exported.get_parameter(name), parameter), name


@pytest.fixture(scope="session")
def large_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 240 MB of fp32, in three shards."""
    config = NetworkConfig.from_size(
        d_model=1024,
        n_layers=4,
        n_heads=8,
        mlp_hidden_size=2560,
        max_sequence_length=64,
        vocab_size=6000,
        mask_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model_dir = tmp_path_factory.mktemp("large") / "model"
    export_checkpoint(
        network_tensors(build_model(config)), config, GOLDEN, model_dir, torch.float32, "100MB"
    )
    return model_dir


def test_memory_and_reads_of_a_large_checkpoint(large_checkpoint: Path) -> None:
    ranks = run_on_ranks(f"{WORKERS}:memory_of_loading", 2, 180, model_dir=str(large_checkpoint))
    assert tensor_bytes(large_checkpoint) > 200e6
    assert sum(rank["bytes_read"] for rank in ranks) <= 1.1 * tensor_bytes(large_checkpoint)
    for rank in ranks:
        bound = rank["partition"] + rank["largest"] + 100e6
        assert rank["growth"] < bound, ranks
        assert rank["peak_growth"] < bound, ranks
