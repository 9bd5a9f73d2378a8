"""What a network of the family is: sizes, features, and the official names of its parts.

Plain values, without torch: the login node checks a model directory by them, and the network
(`model/network.py`) is built from them.

Shapes: C width of the residual stream, H query heads, K key and value heads, D features of a head,
F width inside an MLP, E experts, V rows of the embedding and of the head.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal, cast

Shape = tuple[int, ...]
Shapes = dict[str, Shape]


@dataclass(frozen=True)
class BlockNames:
    """Where the parts of a block are, from the block on; as in the official parameter names.

    `qkv` is one matrix of the rows of all queries, then all keys, then all values; where it is
    named, `q`, `k` and `v` are not.

    `experts` holds the matrices of all experts; the official tensor of expert number 3 is named
    `experts.3.up_proj.weight`, with the last part of `gate`, `up` and `down`. `expert_bias` is a
    buffer.
    """

    attn_norm: str
    attn_out: str
    mlp_norm: str
    gate: str
    up: str
    down: str
    q: str = ""
    k: str = ""
    v: str = ""
    qkv: str = ""
    q_norm: str = ""
    k_norm: str = ""
    router: str = ""
    experts: str = ""
    expert_bias: str = ""
    shared_gate: str = ""
    shared_up: str = ""
    shared_down: str = ""


@dataclass(frozen=True)
class Names:
    """Where the parts of a network are."""

    embedding: str
    blocks: str
    final_norm: str
    head: str
    of_block: BlockNames


@dataclass(frozen=True)
class Router:
    """How a router chooses the experts of a token, and what each counts.

    Attributes:
        scores: What is made of its logits, in fp32.
        bias: Where a buffer is added to the scores: nowhere; `choice`, to choose alone; `weights`,
            also to what the chosen ones count: such a network cannot be trained.
        num_groups: Groups of experts that follow one another, of one size.
        kept_groups: Groups that a token chooses from: those with the largest sums of their two
            best scores.
        normalised: Whether what the chosen ones count is divided by its sum, if there are several.
        scale: What it is multiplied by after that.
        fp32: Whether the logits are computed in fp32, whatever the dtype of the weights.
    """

    scores: Literal["softmax", "sigmoid"] = "softmax"
    bias: Literal["none", "choice", "weights"] = "none"
    num_groups: int = 1
    kept_groups: int = 1
    normalised: bool = False
    scale: float = 1.0
    fp32: bool = False


@dataclass(frozen=True)
class Experts:
    """The mixture of experts that takes the place of the MLP in some layers.

    Attributes:
        layers: For each layer, whether it has experts.
        num_experts: E.
        per_token: Experts that compute each token.
        size: F of one expert.
        shared_size: F of the MLP that computes every token as well; None: there is none.
        router: How they are chosen.
        balance_weight: Weight of the loss that keeps the load of experts even.
    """

    layers: tuple[bool, ...]
    num_experts: int
    per_token: int
    size: int
    shared_size: int | None
    router: Router
    balance_weight: float


@dataclass(frozen=True)
class Architecture:
    """A stack of blocks without the causal mask.

    Attributes:
        names: Of its parts.
        width: C.
        num_layers: Blocks.
        num_heads: H.
        num_kv_heads: K; several query heads may share one.
        head_dim: D.
        mlp_size: F, where a block has no experts.
        vocab_size: Tokens that there are.
        num_embeddings: V, padding included.
        max_length: Most tokens of an example.
        norm_eps: Of the norms.
        rope_theta: Base of the rotary positions.
        rotary_dim: The first features of each head, which are rotated; the others are not. Where
            it is odd, one more is, at the frequencies of the odd number.
        mask_token_id, eos_token_id, pad_token_id: None where the config names none.
        reserved_token_ids: Tokens of the official tokenizer that no text has, free for `data.end`.
        qk_norm: Whether queries and keys of each head are normalised before they are rotated.
        qkv_bias, out_bias: Whether the matrices of attention have biases.
        clip_qkv: Queries, keys and values are clamped to ± this, before they are rotated.
        tied: Whether the head is the embedding.
        shifted: Whether what the network computes at position i predicts token i + 1.
        counts_real: Whether positions count real tokens only, for rows that are padded in front.
        pad_row: The row of the embedding that gets no gradient from the input.
        experts: None: every block has an MLP.
        attention_dropout: Of the official training; there is none here.
        decodes_in_blocks: Whether it was trained, and samplers run it, with block-causal attention.
    """

    names: Names
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_size: int
    vocab_size: int
    num_embeddings: int
    max_length: int
    norm_eps: float
    rope_theta: float
    rotary_dim: int
    mask_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    qk_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    clip_qkv: float | None = None
    tied: bool = False
    shifted: bool = False
    counts_real: bool = False
    pad_row: int | None = None
    experts: Experts | None = None
    reserved_token_ids: tuple[int, ...] = ()
    attention_dropout: float = 0.0
    decodes_in_blocks: bool = False

    def has_experts(self, layer: int) -> bool:
        """Return whether a block has experts instead of an MLP."""
        return self.experts is not None and self.experts.layers[layer]

    def parameter_shapes(self) -> Shapes:
        """Return the shape of each parameter of the network by its name, in its order.

        These are the names of a training checkpoint. They are the official ones, but that the
        experts of a layer are one parameter for each of their three matrices.
        """
        shapes: Shapes = {f"{self.names.embedding}.weight": (self.num_embeddings, self.width)}
        for layer in range(self.num_layers):
            block = f"{self.names.blocks}.{layer}"
            shapes |= {f"{block}.{name}": shape for name, shape in self.block_shapes(layer)}
        shapes[f"{self.names.final_norm}.weight"] = (self.width,)
        if not self.tied:
            shapes[f"{self.names.head}.weight"] = (self.num_embeddings, self.width)
        return shapes

    def buffer_shapes(self) -> Shapes:
        """Return the shape of each buffer by its name, which is the official one."""
        if self.experts is None or self.experts.router.bias == "none":
            return {}
        name = self.names.of_block.expert_bias
        return {
            f"{self.names.blocks}.{layer}.{name}": (self.experts.num_experts,)
            for layer, there in enumerate(self.experts.layers)
            if there
        }

    def tensor_shapes(self, stacked: bool = False) -> Shapes:
        """Return the shape of each tensor of a model directory, by its name there.

        Args:
            stacked: Whether the experts are as in `parameter_shapes`, not under their own names.
        """
        parameters = self.parameter_shapes()
        if not stacked:
            parameters = {
                name: shape
                for parameter, whole in parameters.items()
                for name, shape in self.official_tensors(parameter, whole)
            }
        return parameters | self.buffer_shapes()

    def is_stacked(self, names: Collection[str]) -> bool:
        """Return whether a model directory with these tensors has the experts of a layer as one."""
        return any(
            name in names and self.official_tensors(name, shape)[0][0] != name
            for name, shape in self.parameter_shapes().items()
        )

    def official_tensors(self, parameter: str, shape: Shape) -> list[tuple[str, Shape]]:
        """Return the tensors of a model directory that a parameter consists of, one after another.

        It is one, but for a parameter that stacks the experts of a layer.
        """
        experts = self.names.of_block.experts
        before, found, matrix = parameter.rpartition(f".{experts}.")
        if not experts or not found or matrix.endswith(".weight"):
            return [(parameter, shape)]
        return [
            (f"{before}.{experts}.{number}.{matrix}.weight", shape[1:])
            for number in range(shape[0])
        ]

    def decays(self, parameter: str) -> bool:
        """Return whether the optimizer decays a parameter: matrices, not gains and biases."""
        names = self.names.of_block
        norms = (names.attn_norm, names.mlp_norm, names.q_norm, names.k_norm)
        gains = {f".{name}.weight" for name in norms if name} | {".bias"}
        is_final = parameter == f"{self.names.final_norm}.weight"
        return not is_final and not parameter.endswith(tuple(gains))

    def writes_to_residual(self, parameter: str) -> bool:
        """Return whether what a matrix computes is added to the residual stream."""
        names = self.names.of_block
        writers = [f"{name}.weight" for name in (names.attn_out, names.down, names.shared_down)]
        writers.append(f"{names.experts}.{last_part(names.down)}")
        in_block = parameter.startswith(f"{self.names.blocks}.")
        return in_block and parameter.split(".", _depth(self.names.blocks))[-1] in writers

    def linear_names(self) -> frozenset[str]:
        """Return the last parts of the names of the matrices in blocks, which LoRA can adapt.

        Neither the router nor experts, the embedding or the head are among them.
        """
        names = self.names.of_block
        parts = [name for name, _ in self.qkv_sizes()]
        parts.append(names.attn_out)
        if self.experts is None or not all(self.experts.layers):
            parts += [names.gate, names.up, names.down]
        if self.experts is not None and self.experts.shared_size is not None:
            parts += [names.shared_gate, names.shared_up, names.shared_down]
        return frozenset(part.rpartition(".")[2] for part in parts)

    def qkv_sizes(self) -> list[tuple[str, int]]:
        """Return the matrices that make queries, keys and values, with the rows of each."""
        names, features = self.names.of_block, self.num_heads * self.head_dim
        kv_features = self.num_kv_heads * self.head_dim
        if names.qkv:
            return [(names.qkv, features + 2 * kv_features)]
        return [(names.q, features), (names.k, kv_features), (names.v, kv_features)]

    def block_shapes(self, layer: int) -> Iterator[tuple[str, Shape]]:
        """Give the name and the shape of each parameter of a block."""
        names, width, features = self.names.of_block, self.width, self.num_heads * self.head_dim
        yield f"{names.attn_norm}.weight", (width,)
        for name, size in self.qkv_sizes():
            yield f"{name}.weight", (size, width)
            if self.qkv_bias:
                yield f"{name}.bias", (size,)
        if self.qk_norm:
            yield f"{names.q_norm}.weight", (self.head_dim,)
            yield f"{names.k_norm}.weight", (self.head_dim,)
        yield f"{names.attn_out}.weight", (width, features)
        if self.out_bias:
            yield f"{names.attn_out}.bias", (width,)
        yield f"{names.mlp_norm}.weight", (width,)
        if not self.has_experts(layer):
            yield from _mlp(names.gate, names.up, names.down, width, self.mlp_size)
            return
        experts = cast(Experts, self.experts)
        number = experts.num_experts
        yield f"{names.router}.weight", (number, width)
        for name in (names.gate, names.up):
            yield f"{names.experts}.{last_part(name)}", (number, experts.size, width)
        yield f"{names.experts}.{last_part(names.down)}", (number, width, experts.size)
        if experts.shared_size is not None:
            shared = names.shared_gate, names.shared_up, names.shared_down
            yield from _mlp(*shared, width, experts.shared_size)


def _depth(blocks: str) -> int:
    """Return the dots before the name of a part in its block: those of `blocks`, number, name."""
    return blocks.count(".") + 2


def last_part(name: str) -> str:
    """Return what follows the last dot."""
    return name.rpartition(".")[2]


def _mlp(gate: str, up: str, down: str, width: int, size: int) -> Iterator[tuple[str, Shape]]:
    yield f"{gate}.weight", (size, width)
    yield f"{up}.weight", (size, width)
    yield f"{down}.weight", (width, size)
