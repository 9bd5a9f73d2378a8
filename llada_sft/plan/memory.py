"""The bytes of tensors on one rank, worked out from the config and the sizes of the network.

What stands all the time: the rank's parts of weights, optimizer and gradient sums, and buckets. On
top of it comes what one of three moments needs, whichever is most: the loss at the head; the
backward pass of a block; the optimizer's step. Buffers of libraries and what an allocator does not
give back are not counted.

Sources: DeepSpeed 0.19's stage3.py and stage_1_and_2.py, read and measured; tests compare the sums
with the tensors of real trainings.

Shapes: T tokens that the network runs on in a micro-batch, M of them masked, C width of the
residual stream, V rows of the head, N ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from llada_sft.config.schema import Config
from llada_sft.model.adapter_plan import AdapterPlan
from llada_sft.model.families.architecture import Architecture
from llada_sft.model.layers.kept_bytes import Checkpointing, host_bytes, kept_bytes, most_kept

_FP32 = 4
# Master weight and both moments of AdamW; in 8 bits, a moment has a scale for 256 elements.
_OPTIMIZER = 12
_OPTIMIZER_8_BIT = 4 + 2 * (1 + 4 / 256)
# Of the fp64 copy of a piece of a gradient (training/strategy.py).
_NORM_BYTES = 8 << 22
# Bytes of the fp32 logits of a piece of the head (model/layers/head.py).
_PIECE_BYTES = 512 << 20
# ZeRO-3 flattens the gradients of so many elements at a time.
_SUB_GROUP = 1_000_000_000


@dataclass(frozen=True)
class Load:
    """What one micro-batch makes a rank compute.

    Attributes:
        tokens: T, of both halves with the block objective, and of both twins.
        masked: M.
    """

    tokens: int
    masked: int


@dataclass(frozen=True)
class Sizes:
    """How many elements a rank deals with.

    Attributes:
        trained: Of each trained parameter.
        frozen: Of each other one.
        packed: Of each of these that is kept in 4 bits (`lora.base: nf4`).
        blocks: Of all parameters of each block.
        ranks: N.
    """

    trained: tuple[int, ...]
    frozen: tuple[int, ...]
    blocks: tuple[int, ...]
    ranks: int
    packed: tuple[int, ...] = ()

    def part(self, elements: Sequence[int]) -> int:
        """Return a rank's share of parameters that are each divided between all ranks."""
        return sum(-(-number // self.ranks) for number in elements)


def sizes_of(network: Architecture, adapters: AdapterPlan | None, ranks: int) -> Sizes:
    """Return the elements of a network, all of it trained or the adapters alone."""
    own = network.parameter_shapes()
    blocks = [0] * network.num_layers
    for layer in range(network.num_layers):
        blocks[layer] = sum(prod(shape) for _, shape in network.block_shapes(layer))
    if adapters is None:
        return Sizes(tuple(map(prod, own.values())), (), tuple(blocks), ranks)
    prefix = f"{network.names.blocks}."
    added = adapters.parameter_shapes()
    for name, shape in added.items():
        blocks[int(name.removeprefix(prefix).partition(".")[0])] += prod(shape)
    return Sizes(
        trained=tuple(map(prod, added.values())),
        frozen=tuple(map(prod, own.values())),
        blocks=tuple(blocks),
        ranks=ranks,
        packed=tuple(map(prod, adapters.modules.values())) if adapters.config.base == "nf4" else (),
    )


def packed_bytes(elements: int) -> int:
    """Return the bytes of a matrix in 4 bits, as bitsandbytes keeps it.

    Two weights in a byte; for each block of 64 weights a scale in one byte; for each 256 of these
    scales one of their own in fp32; three tables: their 256 values, the 16 of NF4, and an offset.

    Source: QLoRA (arXiv 2305.14314), NF4 with double quantisation; the bytes of bitsandbytes 0.50's
    tensors are the same.
    """
    blocks = -(-elements // 64)
    return -(-elements // 2) + blocks + _FP32 * (-(-blocks // 256) + 256 + 16 + 1)


@dataclass(frozen=True)
class RankMemory:
    """Bytes of a rank.

    Attributes:
        standing: Of what stands all the time, by name.
        moments: What each moment needs on top, by name and part.
        host: On the CPU, where something is offloaded to it, and for checkpoints.
    """

    standing: dict[str, int]
    moments: dict[str, dict[str, int]]
    host: dict[str, int]

    @property
    def peak_moment(self) -> str:
        """The moment that needs the most."""
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))

    @property
    def peak(self) -> int:
        """The most bytes on the device at one time."""
        return sum(self.standing.values()) + sum(self.moments[self.peak_moment].values())


def rank_memory(
    config: Config,
    network: Architecture,
    adapters: AdapterPlan | None,
    kinds: Sequence[Checkpointing],
    load: Load,
    cuda: bool = True,
) -> RankMemory:
    """Work out the bytes of one rank.

    Args:
        config: The whole config.
        network: Its sizes.
        adapters: What is trained instead of the network's own parameters.
        kinds: What is kept of each block.
        load: Of its largest micro-batch.
        cuda: Whether the device is a GPU: there a softmax reads bf16 without a copy.
    """
    sizes = sizes_of(network, adapters, config.world_size)
    standing, host = _standing(config, sizes)
    element = 2 if config.train.precision == "bf16" else _FP32
    if inputs := load.tokens * host_bytes(network, kinds, element):
        host["inputs of blocks"] = inputs
    gathered = _gathered(config, network, sizes, element)
    of_adapters = _kept_of_adapters(adapters, kinds, element, network.names.blocks)
    kept = load.tokens * (
        of_adapters
        + sum(kept_bytes(network, element, layer)[kind] for layer, kind in enumerate(kinds))
    )
    # Cosines and sines, the stream after the last block and, flat or normalised, at the masks.
    around = load.tokens * (2 * _FP32 * network.rotary_dim + element * network.width)
    chosen = load.masked * network.width * (3 * element + _FP32)
    again = load.tokens * (most_kept(network, kinds, element) + of_adapters) - kept
    in_flight = _in_flight(config, sizes, element)
    moments = {
        "loss": {
            **gathered,
            **in_flight,
            "activations": kept + around + chosen,
            "head": _head(config, network, load.masked, element, adapters is None, cuda),
        },
        "backward": {
            **gathered,
            "activations": kept + around,
            "a block again": again,
            "gradients": _gradients(config, network, sizes, element, load.tokens),
            # Each matrix in 4 bits is a whole one while a product with it is computed.
            **({"a matrix unpacked": element * max(sizes.packed)} if sizes.packed else {}),
        },
        "optimizer step": {"flat gradients": _flat(config, sizes)},
    }
    return RankMemory(standing, moments, host)


def _kept_of_adapters(
    adapters: AdapterPlan | None, kinds: Sequence[Checkpointing], element: int, blocks: str
) -> int:
    """Return the bytes for each token that adapters add to what blocks keep.

    The results of A; with `selective`, which keeps all results of products, those of B as well.
    """
    if adapters is None:
        return 0
    rank, kept = adapters.config.rank, 0
    for module, (outputs, _) in adapters.modules.items():
        kind = kinds[int(module.removeprefix(f"{blocks}.").partition(".")[0])]
        kept += {"none": rank, "selective": rank + outputs, "full": 0, "offload": 0}[kind]
    return element * kept


def optimizer_bytes(config: Config, trained: int) -> int:
    """Return the bytes of masters and moments of so many elements."""
    each = _OPTIMIZER if config.optim.kind == "adamw" else _OPTIMIZER_8_BIT
    return int(each * trained)


def _standing(config: Config, sizes: Sizes) -> tuple[dict[str, int], dict[str, int]]:
    zero = config.deepspeed
    element = 2 if config.train.precision == "bf16" else _FP32
    everything = sizes.trained + sizes.frozen
    trained = sizes.part(sizes.trained)
    host: dict[str, int] = {}
    if zero.stage < 3:
        # Gradients, their sums and the buckets come and go with each step.
        whole = element * (sum(everything) - sum(sizes.packed))
        weights = whole + sum(map(packed_bytes, sizes.packed))
        return {"weights": weights, "optimizer": optimizer_bytes(config, trained)}, host
    weights = element * sizes.part(everything)
    states = {"optimizer": optimizer_bytes(config, trained), "gradient sums": _FP32 * trained}
    standing = {"weights": weights, **states}
    if zero.offload_optimizer == "cpu":
        # And the gradients that the optimizer reads.
        host = {**states, "gradients": _FP32 * trained}
        standing = {"weights": weights}
    if zero.offload_param == "cpu":
        host["weights"] = standing.pop("weights")
    if zero.contiguous(config.train.precision):
        standing["bucket"] = zero.reduce_bucket_size * (2 if zero.reduce_dtype == "bf16" else _FP32)
    return standing, host


def _gathered(config: Config, network: Architecture, sizes: Sizes, element: int) -> dict[str, int]:
    """Return the weights that are whole at a time: small ones, and those that are used again soon.

    DeepSpeed releases a weight if `stage3_max_live_parameters` are whole, or if it is not used
    again within 1e9 elements: of a small network nothing is.
    """
    zero = config.deepspeed
    if zero.stage < 3:
        # Nothing is gathered; what these stages have instead are the sums of gradients.
        summed = sizes.part(sizes.trained) if zero.stage == 2 else sum(sizes.trained)
        return {"gradient sums": _FP32 * summed}
    if config.world_size == 1 and zero.offload_param == "none":
        return {}
    everything = sizes.trained + sizes.frozen
    limit = zero.stage3_param_persistence_threshold
    small = sum(number for number in everything if number <= limit)
    embedding = network.num_embeddings * network.width
    least = max(*sizes.blocks, embedding)
    live = min(sum(everything) - small, max(zero.stage3_max_live_parameters, least))
    return {"gathered weights": element * (small + live)}


def _in_flight(config: Config, sizes: Sizes, element: int) -> dict[str, int]:
    """Return the weights that are on their way: of the next block, and those fetched ahead."""
    zero = config.deepspeed
    if zero.stage < 3 or config.world_size == 1:
        return {}
    ahead = max(sizes.blocks) + zero.stage3_prefetch_bucket_size
    return {"weights on their way": element * min(sum(sizes.trained + sizes.frozen), ahead)}


def _head(
    config: Config,
    network: Architecture,
    masked: int,
    element: int,
    trained: bool,
    cuda: bool,
) -> int:
    """Return the bytes of the head's loss: logits piece by piece, and its weight's gradient."""
    rows, confident = network.num_embeddings, config.objective.confidence_weight > 0
    piece = max(1, _PIECE_BYTES // (_FP32 * rows * (3 if confident else 1)))
    several, size = masked > piece, min(masked, piece) * rows
    # Logits, a copy of them in fp32 where the softmax needs one, and the softmax.
    softmax = element + _FP32 * (1 if cuda else 2) if element < _FP32 else _FP32
    slopes = element + _FP32 if element < _FP32 else _FP32
    if confident:
        softmax, slopes = softmax + 2 * _FP32, slopes + 2 * _FP32
    if not trained:
        return max(softmax, slopes) * size
    weight = rows * network.width
    total = _FP32 * weight if several else 0
    return max(softmax * size + total, slopes * size + total + element * weight)


def _gradients(
    config: Config, network: Architecture, sizes: Sizes, element: int, tokens: int
) -> int:
    """Return the bytes of gradients on their way to the sums, and of those of activations."""
    zero = config.deepspeed
    sent = 2 if zero.reduce_dtype == "bf16" else _FP32
    largest = max(min(zero.reduce_bucket_size, sum(sizes.trained)), *sizes.trained)
    # Laid out by rank for the reduction; and before, where the bucket is not a copy.
    laid_out = sent * largest
    if zero.stage < 3:
        laid_out = sent * zero.reduce_bucket_size * (2 if zero.overlap_comm else 1)
    elif not zero.contiguous(config.train.precision):
        laid_out += element * largest
    experts = network.experts
    hidden = network.mlp_size if experts is None else experts.per_token * experts.size
    return laid_out + 3 * element * tokens * max(network.width, hidden)


def _flat(config: Config, sizes: Sizes) -> int:
    """Return the bytes of the gradients that the optimizer's step lays out for itself."""
    if config.deepspeed.offload_optimizer == "cpu":
        return 0
    part = sizes.part(sizes.trained)
    if config.deepspeed.stage == 3:
        part = min(part, _SUB_GROUP)
    return _FP32 * part
