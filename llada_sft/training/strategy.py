"""DeepSpeed ZeRO under Lightning: one strategy for CUDA (NCCL) and for CPU (gloo).

Lightning's own strategy refuses anything but CUDA. DeepSpeed does not: on CPU the same engine, the
same partitioning and the same checkpoints run over gloo, so that all of it is tested without a GPU.

Lightning by default wraps the training step in one forward of the engine. Here each micro-batch
goes through the engine by itself, because DeepSpeed's accumulation counts calls of the engine.
"""

import argparse
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import deepspeed
import torch
from deepspeed.runtime.constants import BFLOAT16
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from llada_sft.config.sections.deepspeed import DeepSpeedConfig
from llada_sft.errors import CheckpointError, ConfigError
from llada_sft.model import safe_load
from llada_sft.model.partition import drop_second_slices
from llada_sft.placement import Placement
from llada_sft.training.checkpoint.folder import DEEPSPEED_TAG
from llada_sft.training.checkpoint.shard_writer import ShardWriter
from llada_sft.training.checkpoint.universal import OptimizerRepair
from llada_sft.training.ranks import device_ordinal

# Elements of a gradient whose fp64 copy exists at one time: 32 MB.
_NORM_ELEMENTS = 1 << 22


class RankEnvironment(ClusterEnvironment):
    """Gives Lightning the placement that the job has determined.

    Args:
        placement: This rank.
        ordinal: The number of its device, which Lightning passes to DeepSpeed as LOCAL_RANK.
    """

    def __init__(self, placement: Placement, ordinal: int) -> None:
        super().__init__()
        self._placement, self._ordinal = placement, ordinal

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self._placement.master_addr

    @property
    def main_port(self) -> int:
        return self._placement.master_port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._placement.world_size

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return self._placement.rank

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return self._ordinal

    def node_rank(self) -> int:
        return self._placement.node_rank


def deepspeed_config(
    config: DeepSpeedConfig, gradient_clip: float, precision: Literal["bf16", "fp32"]
) -> dict[str, Any]:
    """Render DeepSpeed's own configuration: ZeRO, gradients summed in fp32."""
    zero: dict[str, Any] = {
        "stage": config.stage,
        "contiguous_gradients": config.contiguous(precision),
        "overlap_comm": config.overlap_comm,
        "reduce_bucket_size": config.reduce_bucket_size,
        "stage3_prefetch_bucket_size": config.stage3_prefetch_bucket_size,
        "stage3_param_persistence_threshold": config.stage3_param_persistence_threshold,
        "stage3_max_live_parameters": config.stage3_max_live_parameters,
        "zero_hpz_partition_size": config.zero_hpz_partition_size,
        "zero_quantized_weights": config.zero_quantized_weights,
        "zero_quantized_gradients": config.zero_quantized_gradients,
    }
    for name, device in (
        ("offload_optimizer", config.offload_optimizer),
        ("offload_param", config.offload_param),
    ):
        if device != "none":
            zero[name] = {"device": device, "pin_memory": torch.cuda.is_available()}
    return {
        "zero_optimization": zero,
        # torch's AdamW is used as it is, on any device, instead of DeepSpeed's compiled ones.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": gradient_clip,
        "train_micro_batch_size_per_gpu": 1,
        "communication_data_type": config.reduce_dtype,
        "data_types": {"grad_accum_dtype": "fp32"},
        # Silence the engine's own numbers, which would be printed between ours.
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }


def _fetch_blocks_whole(model: nn.Module) -> None:
    """Make the blocks of a network leaves of ZeRO-3: one gather and two hooks for each block.

    The class of the blocks is the one that the network does not allow to be split. A network with
    frozen parameters keeps hooks for each module: where the input of a leaf needs no gradient,
    recomputation finds the leaf's weights released ("size of tensor a (0) must match"). With
    adapters, the network sees to it that the input needs one.
    """
    if not _has_adapters(model) and not all(p.requires_grad for p in model.parameters()):
        return
    whole = {name for module in model.modules() for name in _no_split(module)}
    deepspeed.utils.set_z3_leaf_modules(model, sorted(whole))


def _has_adapters(model: nn.Module) -> bool:
    """Return whether adapters alone are trained: then checkpoints hold nothing else."""
    return any(getattr(module, "adapted", False) for module in model.modules())


@contextmanager
def _one_kind_of_optimizer() -> Iterator[None]:
    """Let DeepSpeed take its ZeRO optimizer for stage 1 in bf16 with fp32 sums, as for stage 2.

    By itself it takes another class, `BF16_Optimizer`, with other files in a checkpoint, which the
    same class writes in fp32 and at stage 2. The method is private; tests train at each stage.
    """
    choose = DeepSpeedEngine._do_optimizer_sanity_check

    def chosen(engine: DeepSpeedEngine, basic_optimizer: Any) -> Any:
        kind = choose(engine, basic_optimizer)
        return ZERO_OPTIMIZATION if kind == BFLOAT16 else kind

    DeepSpeedEngine._do_optimizer_sanity_check = chosen
    try:
        yield
    finally:
        DeepSpeedEngine._do_optimizer_sanity_check = choose


def _take_norms_in_pieces(optimizer: Any) -> None:
    """Let DeepSpeed take the norm of each gradient in pieces.

    It sums squares in fp64, for which it copies a whole gradient; a piece of a copy is enough. The
    result differs in the order of the sum alone. The method is private; a test counts bytes.
    """
    take = optimizer.get_grad_norm_direct

    def taken(gradients: Iterable[Tensor], params: Iterable[nn.Parameter], *more: Any) -> Any:
        real = (one for one in gradients if not getattr(one, "_zero_padding", False))
        pieces = [
            (piece, param)
            for gradient, param in zip(real, params, strict=False)
            for piece in torch.split(gradient.flatten(), _NORM_ELEMENTS)
        ]
        return take([piece for piece, _ in pieces], [param for _, param in pieces], *more)

    optimizer.get_grad_norm_direct = taken


def _copies_loaded(config: dict[str, Any], device: torch.device) -> bool:
    """Whether DeepSpeed copies what it loads: an optimizer on the CPU would keep it."""
    return device.type == "cuda" and "offload_optimizer" not in config.get("zero_optimization", {})


def _no_split(module: nn.Module) -> Iterable[str]:
    return getattr(module, "_no_split_modules", None) or ()


def require_quantization(config: DeepSpeedConfig, device: torch.device) -> None:
    """Check that what is quantized can be: DeepSpeed has kernels for CUDA only.

    Raises:
        ConfigError: This rank computes on the CPU.
    """
    for name in ("zero_quantized_weights", "zero_quantized_gradients"):
        if getattr(config, name) and device.type != "cuda":
            raise ConfigError(
                f"deepspeed.{name}: needs CUDA, and this rank computes on the CPU; set it to false"
            )


class Zero3Strategy(DeepSpeedStrategy):
    """ZeRO on CUDA or CPU, driven micro-batch by micro-batch; the config has the stage.

    Args:
        config: What `deepspeed_config` returns.
        placement: This rank.
        device: Where this rank computes.
        precision: `bf16` keeps fp32 master weights in the partitioned optimizer.
        timeout: Timeout of each collective.
        load_universal: Whether the checkpoint to load is a universal one.
        optimizer_threads: CPU threads of the optimizer's step, where it is computed on the CPU;
            None leaves them as they are.
        leaf_blocks: Whether all weights of a block are gathered and released at once.

    Attributes:
        shard_writer: Writes this rank's part of a checkpoint.
    """

    def __init__(
        self,
        config: dict[str, Any],
        placement: Placement,
        device: torch.device,
        precision: Literal["bf16", "fp32"],
        timeout: timedelta,
        load_universal: bool = False,
        optimizer_threads: int | None = None,
        leaf_blocks: bool = False,
    ) -> None:
        super().__init__(
            config=config | {"checkpoint": {"load_universal": load_universal}},
            parallel_devices=[device],
            cluster_environment=RankEnvironment(placement, device_ordinal(device, placement)),
            precision_plugin=DeepSpeedPrecision("bf16-mixed" if precision == "bf16" else "32-true"),
            process_group_backend="nccl" if device.type == "cuda" else "gloo",
            timeout=timeout,
        )
        self._device, self._load_universal = device, load_universal
        self._optimizer_threads, self._leaf_blocks = optimizer_threads, leaf_blocks
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.shard_writer = ShardWriter(maps_files=_copies_loaded(config, device))
        self._adapters_alone = False

    @property
    def root_device(self) -> torch.device:
        return self._device

    def setup_environment(self) -> None:
        # One level up, past DeepSpeedStrategy's refusal of everything but CUDA.
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        # Same as the parent, without its check that each device has its own index.
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Let parameters be born partitioned (stage 3), or whole where they are trained."""
        if self.zero_stage_3:
            with super().model_sharded_context():
                yield
            return
        before = torch.get_default_dtype()
        torch.set_default_dtype(self._dtype)
        try:
            with self._device:
                yield
        finally:
            torch.set_default_dtype(before)

    def _setup_model_and_optimizer(
        self, model: nn.Module, optimizer: Optimizer | None, lr_scheduler: Any = None
    ) -> tuple[deepspeed.DeepSpeedEngine, Optimizer]:
        # Same as the parent, except that the CPU has no device index: the local rank replaces it.
        self._adapters_alone = _has_adapters(model)
        if self._leaf_blocks and self.zero_stage_3:
            _fetch_blocks_whole(model)
        with _one_kind_of_optimizer():
            engine, zero_optimizer, _, _ = deepspeed.initialize(
                args=argparse.Namespace(device_rank=self.local_rank),
                config=self.config,
                model=model,
                model_parameters=[p for p in model.parameters() if p.requires_grad],
                optimizer=optimizer,
                lr_scheduler=lr_scheduler,
                dist_init_required=False,
            )
        # Stages 1 and 2 look for NaN and infinity in fp16 only, unless this is set.
        zero_optimizer.check_grad_overflow = True
        engine.checkpoint_engine = self.shard_writer
        _take_norms_in_pieces(zero_optimizer)
        # Otherwise rank 0 would copy two DeepSpeed scripts into each checkpoint, which must not
        # hold code. The method is private.
        engine._copy_recovery_script = lambda save_path: None
        return engine, zero_optimizer

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        """Write this rank's shards; afterwards `shard_writer.error` is None if all were written.

        With the storage option `background` they are copied now, and written later
        (`shard_writer.ended`).

        Same as the parent, except that DeepSpeed's `latest` file is written after its barrier: if
        writing it failed earlier, the other ranks would wait in that barrier forever.
        """
        states = ("state_dict", "optimizer_states")
        background = bool((storage_options or {}).get("background"))
        self.shard_writer.begin(background)
        self.deepspeed_engine.save_checkpoint(
            filepath,
            client_state={key: value for key, value in checkpoint.items() if key not in states},
            tag=DEEPSPEED_TAG,
            save_latest=False,
            exclude_frozen_parameters=self._adapters_alone,
        )
        if self.is_global_zero:
            # When DeepSpeed loads, it reads `latest` first.
            self.shard_writer.save_text(DEEPSPEED_TAG, Path(filepath) / "latest")

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """Load this rank's part of a checkpoint, without running code from it.

        Raises:
            CheckpointError: It holds more than tensors and plain values.
        """
        try:
            with safe_load.weights_only():
                return self._load(checkpoint_path)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{checkpoint_path}: holds {safe_load.what_is_held(error)}; "
                "nothing of it was run: use a checkpoint that this training wrote"
            ) from None

    def _load(self, checkpoint_path: Any) -> Any:
        repair = OptimizerRepair(self.deepspeed_engine.optimizer.optimizer)
        state = super().load_checkpoint(checkpoint_path)
        repair.apply()
        # DeepSpeed does so for what is trained alone: frozen parameters would stay as they were.
        drop_second_slices(self.deepspeed_engine.module)
        return state

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module itself; it sends each micro-batch through the engine."""
        assert self.lightning_module is not None
        return self.lightning_module.training_step(*args, **kwargs)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Let all modules be in evaluation mode; afterwards each is in the mode that it was in."""
        engine = self.deepspeed_engine
        modes = [(module, module.training) for module in engine.modules()]
        engine.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    def accumulate(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of a micro-batch; `last` closes the global batch.

        The loss is already scaled for the global batch, so DeepSpeed's own division by the number
        of accumulated micro-batches is disabled.
        """
        engine = self.deepspeed_engine
        engine.set_gradient_accumulation_boundary(last)
        engine.backward(loss, scale_wrt_gas=False)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        """Make the step, with `optimizer_threads` CPU threads if they are given."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._optimizer_threads or before)
        try:
            return super().optimizer_step(*args, **kwargs)
        finally:
            torch.set_num_threads(before)

    @property
    def step_applied(self) -> bool:
        """Whether the last step changed the weights; a step with a non-finite norm is skipped."""
        return bool(self.deepspeed_engine.was_step_applied())

    @property
    def gradient_norm(self) -> float:
        """The global L2 norm of the last step's gradient, before clipping."""
        norm = self.deepspeed_engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)
