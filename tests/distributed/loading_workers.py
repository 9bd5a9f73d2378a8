"""What the ranks of test_loading.py do: each function runs on every rank of a gloo group."""

import gc
import math
import os
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from llada_sft.model import Network, NetworkConfig, build_model, load_model
from llada_sft.model.configuration import read_config
from llada_sft.model.loading import load_weights

DEEPSPEED: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "zero_allow_untested_optimizer": True,
}
SMALL = {
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "mlp_hidden_size": 72,
    "max_sequence_length": 64,
    "vocab_size": 101,
    "mask_token_id": 100,
    "eos_token_id": 99,
    "pad_token_id": 98,
}


def join_group() -> None:
    # An op of inference that DeepSpeed would compile now, for minutes; a run that is killed while
    # it compiles leaves a lock on which all later runs wait for ever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", verbose=False)


def born_partitioned(model_dir: str, bf16: bool) -> int:
    """Compare every slice with the whole tensor's; return the bytes that this rank read."""
    join_group()
    dtype = torch.bfloat16 if bf16 else torch.float32
    whole, random = load_model(model_dir, dtype), build_model(NetworkConfig.from_size(**SMALL), 5)
    with deepspeed.zero.Init(config_dict_or_path=DEEPSPEED | {"bf16": {"enabled": bf16}}):
        model = Network(read_config(Path(model_dir)))
        report = load_weights(model, Path(model_dir))
        random_model = build_model(NetworkConfig.from_size(**SMALL), 5)
    for name, parameter in model.named_parameters():
        assert_slice(name, parameter.ds_tensor, whole.get_parameter(name).detach())
    for name, parameter in random_model.named_parameters():
        assert_slice(name, parameter.ds_tensor, random.get_parameter(name).detach().to(dtype))
    return report.bytes_read


def assert_slice(name: str, held: Tensor, whole: Tensor) -> None:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    size = math.ceil(whole.numel() / world_size)
    padded = torch.cat([whole.flatten(), whole.new_zeros(size * world_size - whole.numel())])
    assert torch.equal(held, padded[rank * size : (rank + 1) * size]), name


def memory_of_loading(model_dir: str) -> dict[str, int]:
    """Return how far this rank's anonymous memory rose while it built and loaded."""
    join_group()
    config = read_config(Path(model_dir))
    build_model_once()  # what the first model of a process costs: thread pools, gloo's buffers
    gc.collect()
    before = anonymous_bytes()
    with deepspeed.zero.Init(config_dict_or_path=DEEPSPEED):
        model = Network(config)
        after_building = anonymous_bytes()
        report = load_weights(model, Path(model_dir))
    return {
        "growth": max(after_building, anonymous_bytes()) - before,
        "peak_growth": peak_bytes() - before,
        "partition": sum(4 * p.ds_tensor.numel() for p in model.parameters()),
        "largest": max(4 * math.prod(p.ds_shape) for p in model.parameters()),
        "bytes_read": report.bytes_read,
    }


def build_model_once() -> None:
    with deepspeed.zero.Init(config_dict_or_path=DEEPSPEED):
        build_model(NetworkConfig.from_size(**SMALL))


def anonymous_bytes() -> int:
    return _status("RssAnon")


def peak_bytes() -> int:
    """The highest resident memory, less the pages of files that are mapped now."""
    return _status("VmHWM") - _status("RssFile") - _status("RssShmem")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field} in /proc/self/status")


class Holder(nn.Module):
    """Stands for the LightningModule: its attribute names the parameters of a checkpoint."""

    def __init__(self, model_dir: Path) -> None:
        super().__init__()
        self.network = build_model(model_dir)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        logits: Tensor = self.network(ids, positions=positions).logits
        return logits


def one_step(model_dir: str, out: str) -> float:
    """Take a step of size zero, with recomputation, and save what training saves.

    Returns:
        The largest relative error of a parameter's gradient, against one process without ZeRO.
    """
    join_group()
    ids = torch.arange(48).view(2, 24) * 7 % 500
    positions = torch.tensor([1, 5, 30, 47])
    whole = load_model(model_dir)
    torch.autograd.backward(some_loss(whole, ids, positions))
    with deepspeed.zero.Init(config_dict_or_path=DEEPSPEED):
        module = Holder(Path(model_dir))
    module.network.set_activation_checkpointing("full")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=DEEPSPEED)
    engine.backward(some_loss(engine, ids, positions))
    errors = [
        _relative_error(deepspeed.utils.safe_get_full_grad(p), whole.get_parameter(name).grad)
        for name, p in module.network.named_parameters()
    ]
    engine.step()
    engine.save_checkpoint(out, tag="checkpoint")
    return max(errors)


def _relative_error(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


def some_loss(model: Any, ids: Tensor, positions: Tensor) -> Tensor:
    output = model(ids, positions=positions)
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits.float().logsumexp(-1).sum()
