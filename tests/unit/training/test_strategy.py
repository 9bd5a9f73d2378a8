"""What DeepSpeed is told: its configuration, the ends of global batches, what a save writes."""

import math
import re
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import deepspeed
import pytest
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy

import llada_sft.training.strategy as strategy_module
from llada_sft.config.sections.deepspeed import DeepSpeedConfig
from llada_sft.errors import ConfigError
from llada_sft.model import Network, NetworkConfig
from llada_sft.placement import Placement
from llada_sft.training.strategy import Zero3Strategy, deepspeed_config, require_quantization

PLACEMENT = Placement(0, 1, 0, 0, "127.0.0.1", 29500)


class Engine:
    """Remembers what it is told, in order."""

    def __init__(self, norm: float | None = 1.5) -> None:
        self.told: list[tuple[Any, ...]] = []
        self._norm = norm

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        self.told.append(("boundary", is_boundary))

    def backward(self, loss: Any, scale_wrt_gas: bool = True) -> None:
        self.told.append(("backward", loss, scale_wrt_gas))

    def save_checkpoint(self, path: str, **how: Any) -> None:
        # In the midst of its collectives nothing but the shards may be written.
        assert not (Path(path) / "latest").exists()
        self.told.append(("save", Path(path).name, how))

    def was_step_applied(self) -> bool:
        return False

    def get_global_grad_norm(self) -> float | None:
        return self._norm


@pytest.fixture
def strategy(monkeypatch: pytest.MonkeyPatch) -> Zero3Strategy:
    made = Zero3Strategy({}, PLACEMENT, torch.device("cpu"), "bf16", timedelta(minutes=1))
    monkeypatch.setattr(Zero3Strategy, "deepspeed_engine", Engine())
    return made


def engine_of(strategy: Zero3Strategy) -> Engine:
    engine: Any = strategy.deepspeed_engine
    assert isinstance(engine, Engine)
    return engine


def test_gradients_are_summed_and_sent_in_fp32() -> None:
    config = deepspeed_config(DeepSpeedConfig(), gradient_clip=0.7, precision="bf16")
    assert config["communication_data_type"] == "fp32"
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["gradient_clipping"] == 0.7
    # One micro-batch of any size: accumulation is driven by hand.
    assert config["train_micro_batch_size_per_gpu"] == 1
    assert "gradient_accumulation_steps" not in config
    # torch's own AdamW, as it is.
    assert config["zero_allow_untested_optimizer"] is True
    assert config["zero_force_ds_cpu_optimizer"] is False


def test_the_sizes_of_zero3_are_those_of_the_config() -> None:
    sizes = {
        "reduce_bucket_size": 1001,
        "stage3_prefetch_bucket_size": 1002,
        "stage3_param_persistence_threshold": 1003,
        "stage3_max_live_parameters": 1004,
    }
    zero = deepspeed_config(DeepSpeedConfig.model_validate(sizes), 1.0, "bf16")["zero_optimization"]
    assert zero["stage"] == 3
    assert {name: zero[name] for name in sizes} == sizes
    assert not zero.keys() & {"offload_optimizer", "offload_param"}


def test_how_gradients_are_reduced() -> None:
    given = {"overlap_comm": False, "contiguous_gradients": False, "reduce_dtype": "bf16"}
    config = deepspeed_config(DeepSpeedConfig.model_validate(given), 1.0, "bf16")
    zero = config["zero_optimization"]
    assert (zero["overlap_comm"], zero["contiguous_gradients"]) == (False, False)
    assert config["communication_data_type"] == "bf16"
    # Over micro-batches they are summed in fp32 all the same.
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}


@pytest.mark.parametrize("part", ["offload_optimizer", "offload_param"])
def test_what_is_offloaded(part: str) -> None:
    config = DeepSpeedConfig.model_validate({part: "cpu"})
    zero = deepspeed_config(config, 1.0, "bf16")["zero_optimization"]
    assert {name: zero[name]["device"] for name in zero if "offload" in name} == {part: "cpu"}


def test_only_the_last_micro_batch_closes_a_global_batch(strategy: Zero3Strategy) -> None:
    losses = [torch.tensor(float(number)) for number in range(3)]
    for loss in losses:
        strategy.accumulate(loss, last=loss is losses[-1])
    # Not divided by the number of micro-batches: the coefficients are of the global batch.
    assert engine_of(strategy).told == [
        ("boundary", False),
        ("backward", losses[0], False),
        ("boundary", False),
        ("backward", losses[1], False),
        ("boundary", True),
        ("backward", losses[2], False),
    ]


def test_deepspeeds_latest_is_written_behind_its_barrier(
    strategy: Zero3Strategy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Zero3Strategy, "is_global_zero", True)
    strategy.shard_writer.error = OSError(28, "of the checkpoint before")
    checkpoint = {"state_dict": {"a": 1}, "optimizer_states": [2], "loops": {"step": 3}}
    strategy.save_checkpoint(checkpoint, tmp_path)
    how = {
        "client_state": {"loops": {"step": 3}},
        "tag": "checkpoint",
        "save_latest": False,
        "exclude_frozen_parameters": False,
    }
    assert engine_of(strategy).told == [("save", tmp_path.name, how)]
    assert (tmp_path / "latest").read_text() == "checkpoint"
    assert strategy.shard_writer.error is None


def test_other_ranks_write_no_latest(
    strategy: Zero3Strategy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Zero3Strategy, "is_global_zero", False)
    strategy.save_checkpoint({}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_module_itself_makes_steps(
    strategy: Zero3Strategy, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = SimpleNamespace(
        training_step=lambda batch, number: ("train", batch, number),
    )
    monkeypatch.setattr(Zero3Strategy, "lightning_module", module)
    assert strategy.training_step("batch", 0) == ("train", "batch", 0)


def test_a_step_without_a_norm(strategy: Zero3Strategy, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (strategy.gradient_norm, strategy.step_applied) == (1.5, False)
    monkeypatch.setattr(Zero3Strategy, "deepspeed_engine", Engine(norm=None))
    assert math.isnan(strategy.gradient_norm)


@pytest.mark.parametrize(("given", "expected"), [(None, 1), (3, 3)])
def test_the_threads_of_the_optimizers_step(
    given: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        DeepSpeedStrategy,
        "optimizer_step",
        lambda self, *args, **kwargs: seen.append(torch.get_num_threads()),
    )
    made = Zero3Strategy(
        {},
        PLACEMENT,
        torch.device("cpu"),
        "bf16",
        timedelta(minutes=1),
        optimizer_threads=given,
    )
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        made.optimizer_step(None, None)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert seen == [expected]


@pytest.mark.parametrize(
    ("device", "offload", "maps"),
    [("cuda", "none", True), ("cuda", "cpu", False), ("cpu", "none", False)],
)
def test_an_optimizer_on_the_cpu_keeps_no_checkpoint_open(
    device: str, offload: Literal["none", "cpu"], maps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU each tensor is copied there: it may be mapped from the file."""
    made: list[bool] = []
    monkeypatch.setattr(strategy_module, "ShardWriter", lambda maps_files: made.append(maps_files))
    config = deepspeed_config(DeepSpeedConfig(offload_optimizer=offload), 1.0, "bf16")
    Zero3Strategy(config, PLACEMENT, torch.device(device, 0), "bf16", timedelta(minutes=1))
    assert made == [maps]


class Engines:
    """Stands for `deepspeed.initialize`: remembers which modules were leaves by then."""

    def __init__(self) -> None:
        self.leaves: list[torch.nn.Module] = []

    def __call__(self, model: torch.nn.Module, **more: Any) -> tuple[Any, ...]:
        self.leaves = deepspeed.utils.get_z3_leaf_modules(model)
        optimizer = SimpleNamespace(get_grad_norm_direct=None)
        return SimpleNamespace(), optimizer, None, None


def leaves_of(
    monkeypatch: pytest.MonkeyPatch, model: torch.nn.Module, leaf_blocks: bool, stage: int = 3
) -> int:
    engines = Engines()
    monkeypatch.setattr(deepspeed, "initialize", engines)
    made = Zero3Strategy(
        {"zero_optimization": {"stage": stage}},
        PLACEMENT,
        torch.device("cpu"),
        "bf16",
        timedelta(minutes=1),
        leaf_blocks=leaf_blocks,
    )
    made._setup_model_and_optimizer(model, None)
    return len(engines.leaves)


def test_blocks_are_leaves_where_all_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"d_model": 8, "n_layers": 3, "n_heads": 2, "mlp_hidden_size": 8, "vocab_size": 9}
    special = {"mask_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}

    def network() -> torch.nn.Module:
        made = Network(NetworkConfig.from_size(**sizes, max_sequence_length=8, **special))
        return torch.nn.ModuleDict({"network": made})

    assert leaves_of(monkeypatch, network(), True) == 3
    assert leaves_of(monkeypatch, network(), False) == 0
    assert leaves_of(monkeypatch, network(), True, stage=2) == 0
    frozen = network()
    next(frozen.parameters()).requires_grad = False
    assert leaves_of(monkeypatch, frozen, True) == 0


@pytest.mark.parametrize("name", ["zero_quantized_weights", "zero_quantized_gradients"])
def test_what_is_quantized_needs_cuda(name: str) -> None:
    config = DeepSpeedConfig.model_validate({name: True})
    require_quantization(config, torch.device("cuda"))
    require_quantization(DeepSpeedConfig(), torch.device("cpu"))
    line = f"deepspeed.{name}: needs CUDA, and this rank computes on the CPU; set it to false"
    with pytest.raises(ConfigError, match=f"^{re.escape(line)}$"):
        require_quantization(config, torch.device("cpu"))
    assert deepspeed_config(config, 1.0, "bf16")["zero_optimization"][name] is True


def test_second_slices_of_frozen_parameters_are_dropped_after_loading(
    strategy: Zero3Strategy, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = torch.nn.Parameter(torch.zeros(0), requires_grad=False)
    vars(frozen).update(ds_id=0, ds_secondary_tensor=torch.ones(2))
    module = torch.nn.ParameterList([frozen])
    optimizer = SimpleNamespace(optimizer=torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]))
    engine = SimpleNamespace(module=module, optimizer=optimizer)
    monkeypatch.setattr(Zero3Strategy, "deepspeed_engine", engine)
    monkeypatch.setattr(DeepSpeedStrategy, "load_checkpoint", lambda self, path: {"loops": path})
    assert strategy.load_checkpoint("here") == {"loops": "here"}
    assert vars(frozen)["ds_secondary_tensor"] is None


def test_norms_are_taken_of_pieces_without_zero_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed copies what it takes the norm of to fp64."""
    monkeypatch.setattr(strategy_module, "_NORM_ELEMENTS", 10)
    sizes: list[int] = []

    def take(gradients: list[torch.Tensor], params: list[Any], norm_type: float = 2) -> Any:
        assert len(gradients) == len(params) and norm_type == 2
        sizes.extend(gradient.numel() for gradient in gradients)
        return torch.stack([gradient.double().norm(2) for gradient in gradients]).norm(2)

    optimizer = SimpleNamespace(get_grad_norm_direct=take)
    strategy_module._take_norms_in_pieces(optimizer)
    gradients = [torch.randn(3, 7), torch.randn(10), torch.full((5,), math.nan)]
    gradients[2]._zero_padding = True  # type: ignore[attr-defined]
    norm = optimizer.get_grad_norm_direct(gradients, ["a", "b"])
    assert sizes == [10, 10, 1, 10]
    whole = torch.cat([gradient.flatten() for gradient in gradients[:2]])
    assert float(norm) == pytest.approx(float(whole.double().norm(2)), rel=1e-12)


@pytest.mark.parametrize(
    ("given", "precision", "expected"),
    [
        ({}, "bf16", True),
        ({}, "fp32", False),
        ({"reduce_dtype": "bf16"}, "bf16", False),
        ({"reduce_dtype": "bf16"}, "fp32", True),
        ({"stage": 2}, "fp32", True),
        ({"contiguous_gradients": True}, "fp32", True),
        ({"contiguous_gradients": False}, "bf16", False),
    ],
)
def test_gradients_are_copied_into_a_buffer_unless_they_need_no_conversion(
    given: dict[str, Any], precision: Literal["bf16", "fp32"], expected: bool
) -> None:
    config = deepspeed_config(DeepSpeedConfig.model_validate(given), 1.0, precision)
    assert config["zero_optimization"]["contiguous_gradients"] is expected
