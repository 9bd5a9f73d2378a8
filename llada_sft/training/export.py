"""From a run directory to a model directory: `llada-sft export`."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from llada_sft.config import load_run_config
from llada_sft.config.schema import Config
from llada_sft.data.examples.answer_end import end_token_ids
from llada_sft.errors import CheckpointError, ConfigError
from llada_sft.model.adapter_export import merged_tensors, official_tensors, write_adapter
from llada_sft.model.configuration import NetworkConfig
from llada_sft.model.export import (
    LazyTensor,
    averaged,
    export_checkpoint,
    network_tensors,
    zero3_tensors,
)
from llada_sft.model.families.architecture import last_part
from llada_sft.model.index import read_index
from llada_sft.model.loading import build_model
from llada_sft.run_dir import RunDir
from llada_sft.training.build_network import base_weights, plan_training, token_ids, trained_network
from llada_sft.training.checkpoint.folder import list_named, list_set_aside, steps_to_average
from llada_sft.training.checkpoint.verify import Defect, Share, examine, summary

Look = Callable[..., list[Defect]]
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def export_run(
    run_dir: Path,
    out: Path,
    dtype: str | None,
    step: int | None,
    adapter: bool = False,
    average: int = 1,
    stacked: bool = False,
) -> Path:
    """Write a checkpoint of a run in Hugging Face's layout; adapters are merged into the network.

    Args:
        run_dir: The run.
        out: The directory to write; must not exist, or be empty.
        dtype: `bf16` or `fp32`; None takes the training's precision, and fp32 for an adapter.
        step: Which checkpoint; None takes the newest.
        adapter: Whether the adapters are written alone, as PEFT reads them.
        average: How many checkpoints, up to this step, the weights are the mean of.
        stacked: Whether the experts of a layer are one tensor for each of their matrices.

    Returns:
        The checkpoint that was exported; of several, the newest.

    Raises:
        CheckpointError: There is no such checkpoint, or there are too few; one is damaged, or
            `out` is in use.
        ConfigError: The run trains no adapters, and one was asked for; or the mean of some; or
            experts are to be stacked whose stacks nobody else reads.
    """
    run = RunDir(run_dir)
    config = load_run_config(run.config)
    network = trained_network(config).of_layout(stacked)
    ends = end_token_ids(config.data, token_ids(network))
    network.suppress_tokens = tuple(dict.fromkeys((*network.suppress_tokens, *ends)))
    plan = plan_training(config, network)
    if plan is None:
        if adapter:
            raise ConfigError(f"--adapter: {run_dir} trains no adapters (lora: null); remove it")
        look = partial(examine, network=network.architecture.parameter_shapes())
    else:
        look = partial(examine, network=plan.parameter_shapes(), base=base_weights(config))
    steps = steps_to_average(run.checkpoints, step, average)
    checkpoints = [_choose(run, chosen, look) for chosen in steps]
    weights = [zero3_tensors(checkpoint) for checkpoint in checkpoints]
    source = Path(config.model.path)
    if plan is not None:
        weights = [_without_buffers(tensors, network) for tensors in weights]
    if plan is not None and adapter:
        write_adapter(weights[0], plan, str(source), out, _DTYPES[dtype or "fp32"])
        return checkpoints[-1]
    if plan is not None:
        base = _base_tensors(config, network)
        weights = [merged_tensors(base, adapters, plan) for adapters in weights]
    tensors = averaged(weights) if average > 1 else weights[0]
    written = _DTYPES[dtype or config.train.precision]
    export_checkpoint(tensors, network, source, out, written, stacked=stacked)
    return checkpoints[-1]


def _base_tensors(config: Config, network: NetworkConfig) -> dict[str, LazyTensor]:
    """Return the weights that adapters were trained on."""
    if config.model.size is None:
        return official_tensors(read_index(Path(config.model.path)))
    return network_tensors(build_model(network, config.run.seed))


def _without_buffers(
    tensors: Mapping[str, LazyTensor], network: NetworkConfig
) -> dict[str, LazyTensor]:
    """Return the adapters of a checkpoint: the network's files have its buffers."""
    buffers = {last_part(name) for name in network.architecture.buffer_shapes()}
    return {name: tensor for name, tensor in tensors.items() if last_part(name) not in buffers}


def _choose(run: RunDir, step: int, look: Look) -> Path:
    """Return the checkpoint that was asked for, once it is verified.

    Raises:
        CheckpointError: It is damaged. The message names another one, which is never exported
            instead.
    """
    named = dict(list_named(run.checkpoints))
    damaged = dict(list_set_aside(run.checkpoints))
    if step in named:
        line = _problem(named[step], look)
        if not line:
            return named[step]
    else:
        line = f"{damaged[step]}: was found damaged when the run resumed"
    others = [other for other in sorted(named, reverse=True) if other != step]
    good = next((other for other in others if not _problem(named[other], look)), None)
    do = "there is no other" if good is None else f"export another one with  --step {good}"
    raise CheckpointError(f"{line}: not exported; {do}")


def _problem(checkpoint: Path, look: Look) -> str:
    """Examine all files of a checkpoint; return one line about what is wrong, or nothing."""
    findings = look(checkpoint, Share(0, 1))
    return f"{checkpoint}: {summary(findings)}" if findings else ""
