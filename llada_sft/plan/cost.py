"""What an optimizer step sends and how long it takes, and how large a checkpoint is.

Shapes: P parameters, A of them trained, N ranks.
"""

from dataclasses import dataclass

from llada_sft.config.schema import Config
from llada_sft.model.families.architecture import Architecture
from llada_sft.model.flops import needed_operations
from llada_sft.plan.memory import Sizes, optimizer_bytes


@dataclass(frozen=True)
class Traffic:
    """Bytes that each rank receives in an optimizer step.

    Attributes:
        weights: Gathered weights; of stages 1 and 2, those that the step has changed.
        gradients: Of the reduction.
        between_nodes: Bytes that each node receives from others: its ranks share what they gather.
    """

    weights: float
    gradients: float
    between_nodes: float


def traffic(config: Config, sizes: Sizes) -> Traffic:
    """Work out what is sent: by the rings of NCCL and gloo, (N - 1) / N of all bytes arrive.

    At stage 3 weights are gathered for the forward pass and again for the backward pass of each
    micro-batch, unless the whole network is kept (`stage3_max_live_parameters`). With hpZ those of
    the backward pass come from the same node.
    """
    zero, ranks = config.deepspeed, sizes.ranks
    element = 2 if config.train.precision == "bf16" else 4
    sent = 2 if zero.reduce_dtype == "bf16" else 4
    everything, trained = sum(sizes.trained + sizes.frozen), sum(sizes.trained)
    times = config.train.accumulate_grad_batches
    part = (ranks - 1) / ranks
    reduced = times if zero.stage > 1 else 1
    gradients = part * sent * trained * reduced
    if zero.stage < 3:
        weights = far = part * element * trained
    else:
        kept = everything <= zero.stage3_max_live_parameters
        weights = part * element * everything * times * (1 if kept else 2)
        within = zero.zero_hpz_partition_size > 1 and not kept
        far = weights / 2 if within else weights
    between = (far + gradients) if config.slurm.nodes > 1 else 0.0
    return Traffic(weights, gradients, between)


def step_operations(
    config: Config, network: Architecture, tokens: int, adapters: int | None
) -> float:
    """Count the operations that a rank's step needs, whose micro-batches have `tokens` each.

    Rows are taken to be half as long as `data.max_length`, and half of the tokens masked. With
    `objective.kind: block` matrices run on both halves; of their attention each half sees half.
    """
    length, halves = min(tokens, max(1, config.data.max_length // 2)), config.objective.halves
    operations = needed_operations(network, halves * tokens, tokens * length, tokens / 2, adapters)
    return operations * config.train.accumulate_grad_batches


def checkpoint_bytes(config: Config, sizes: Sizes) -> int:
    """Return the bytes of a checkpoint: optimizer states and weights of what is trained."""
    element = 2 if config.train.precision == "bf16" else 4
    trained = sum(sizes.trained)
    return optimizer_bytes(config, trained) + element * trained
