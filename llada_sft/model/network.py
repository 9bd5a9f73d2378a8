"""The network: blocks without the causal mask, under the official parameter names.

    embedding -> blocks -> norm -> head

`Architecture` says which member of the family it is. Every weight belongs to a module that is
*called*, the head included: ZeRO-3 gathers it for the call.

Shapes: B rows, L positions, C width of the residual stream, V rows of the head, M chosen
positions.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from llada_sft.model.configuration import NetworkConfig
from llada_sft.model.layers.activations import run_block
from llada_sft.model.layers.attention import Plan, Sequences, plan_attention, rotary_table
from llada_sft.model.layers.balance import Routing
from llada_sft.model.layers.basic import Embedding, RMSNorm, add_module
from llada_sft.model.layers.block import Block
from llada_sft.model.layers.blocks import Blocks, plan_blocks
from llada_sft.model.layers.cache import KeyValueCache
from llada_sft.model.layers.flex import has_flex, plan_flex
from llada_sft.model.layers.head import Head, LossTerms, TiedEmbedding
from llada_sft.model.layers.kept_bytes import Checkpointing


class Network(PreTrainedModel):  # type: ignore[misc]
    """A mask predictor.

    A `PreTrainedModel` for what others find by it (its config, PEFT's adapters); nothing of
    transformers' loading is used.
    """

    config_class = NetworkConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _no_split_modules = ("Block",)
    # Of packed rows on CUDA, where torch's kernel would be used.
    flash_attention = False

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.architecture = network = config.architecture
        self.compiled = False
        # In blocks on CUDA; without it, chunk by chunk as on CPU.
        self.flex_attention = True
        # Whether adapters alone are trained.
        self.adapted = False
        # Of each block.
        self.checkpointing: Sequence[Checkpointing] = ["none"] * network.num_layers
        names, size = network.names, (network.num_embeddings, network.width)
        kind = TiedEmbedding if network.tied else Embedding
        add_module(self, names.embedding, kind(*size, padding_idx=network.pad_row))
        blocks = (Block(network, layer) for layer in range(network.num_layers))
        add_module(self, names.blocks, nn.ModuleList(blocks))
        add_module(self, names.final_norm, RMSNorm(network.width, network.norm_eps))
        if not network.tied:
            add_module(self, names.head, Head(network.width, network.num_embeddings))

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        max_new_tokens: int = 128,
        **settings: Any,
    ) -> Tensor:
        """Complete prompts, in transformers' manner; for more, see `llada_sft.generation`.

        Args:
            input_ids: [B, P] int64.
            attention_mask: [B, P], 0 at padding, left or right; None: there is none.
            max_new_tokens: Tokens of an answer, at most.
            settings: Others of `llada_sft.generation.SamplerSettings`: `sampler="threshold"`.

        Returns:
            [B, P + T] int64, prompts included; an answer that is shorter than T is padded.

        Raises:
            ValueError: A setting cannot be, or does not exist.
        """
        # The samplers know the network, and it knows them when it is asked.
        from llada_sft.generation.padded import generate_padded

        return generate_padded(self, input_ids, attention_mask, max_new_tokens, **settings)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        sequences: Sequences | None = None,
        targets: Tensor | None = None,
        coefficients: Tensor | LossTerms | None = None,
        routing: Routing | None = None,
        cache: KeyValueCache | None = None,
        places: Tensor | None = None,
        blocks: Blocks | None = None,
    ) -> MaskedLMOutput:
        """Predict the token at every position, or at chosen ones; or return the loss of it.

        Position i predicts token i. The head has V rows, the vocabulary's padding included.

        Args:
            input_ids: [B, L] int64.
            attention_mask: [B, L] bool or integer, non-zero at real tokens; None: all are real.
            positions: [M] int64, indices into the flattened B·L: where the head runs. Training
                passes the masked ones: the logits are most of the memory.
            sequences: Those that fill one row (B is 1), each as if it were alone. None: rows.
            targets: [M] int64, the tokens at `positions`.
            coefficients: [M] fp32, the factor of each cross-entropy; or these and more of the loss.
            routing: Empty; it is given what the routers of experts decide.
            cache: Of the same rows; the keys and values of this pass are put there.
            places: [B, L] int64, where in its row each of `input_ids` is; all other positions are
                those of `cache`, and `attention_mask` is of all. Each row's follow one another.
                Where the architecture is `shifted`, a token is predicted only if the one before it
                is among them. None: `input_ids` are whole rows.
            blocks: How positions attend in blocks, counted from the start of each sequence; padding
                is at the end of rows. None: all of a sequence see each other. If they are doubled,
                `input_ids` are [B, 2L], the noisy halves of the rows and then the clean ones, or,
                of `sequences`, all noisy ones and then all clean ones; `attention_mask` and
                `sequences` are those of one half, `positions` those of the 2L. With `cache`, a
                position sees the cached ones of its own block and of those before it.

        Returns:
            `.logits`: [B, L, V], or [M, V] with `positions`; of the weights' dtype. With `targets`
            only `.loss`, the sum over the positions, fp32: logits then exist piece by piece.

        Raises:
            ValueError: The arguments do not go together.
        """
        real = None if attention_mask is None else attention_mask.bool()
        _check_sequences(input_ids, attention_mask, sequences, blocks)
        _check_cache(cache, places, blocks)
        network, x = self.architecture, self._embedded(input_ids)
        counted = self._positions(x, real, sequences, places, blocks)
        rotary = rotary_table(counted, network.rotary_dim, network.rope_theta)
        plans = self._plans(x, real, sequences, cache, places, blocks)
        x = self._through_blocks(x, rotary, plans, Routing() if routing is None else routing)
        if network.shifted:
            x = _shifted(x, counted)
        if positions is not None:
            x = x.flatten(0, 1).index_select(0, positions)  # [M, C]
        x = self.get_submodule(network.names.final_norm)(x)
        out = self.get_output_embeddings()(x, targets, coefficients)
        return MaskedLMOutput(logits=out) if targets is None else MaskedLMOutput(loss=out)

    def _embedded(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings, [B, L, C]."""
        x: Tensor = self.get_input_embeddings()(input_ids)
        if self.adapted and torch.is_grad_enabled():
            # The embedding is frozen. Blocks that are checkpointed, or leaves of ZeRO-3, have a
            # backward pass only if their input needs a gradient.
            x = x.requires_grad_()
        return x

    def _through_blocks(
        self, x: Tensor, rotary: Tensor, plans: Sequence[Plan], routing: Routing
    ) -> Tensor:
        """Run all blocks, [B, L, C] -> [B, L, C]; `routing` is given what their routers decide."""
        experts = self.architecture.experts
        for block, checkpointing, how in zip(self.blocks(), self.checkpointing, plans, strict=True):
            inputs: list[Any] = [x, rotary, how]
            if experts is not None and block.has_experts:
                inputs.append(routing.choice(experts.per_token).choose)
            x, logits = run_block(block, checkpointing, self.compiled, *inputs)
            if logits is not None:
                routing.logits.append(logits)
        return x

    def blocks(self) -> list[Block]:
        """Return the blocks in their order."""
        children = self.get_submodule(self.architecture.names.blocks).children()
        return [cast(Block, block) for block in children]

    def set_activation_checkpointing(
        self, checkpointing: Checkpointing | Sequence[Checkpointing]
    ) -> None:
        """Choose what is kept for the backward pass: of all blocks, or of each."""
        if isinstance(checkpointing, str):
            self.checkpointing = [checkpointing] * self.architecture.num_layers
        else:
            assert len(checkpointing) == self.architecture.num_layers
            self.checkpointing = checkpointing

    def compile_blocks(self) -> None:
        """Compile the parts of each block."""
        self.compiled = True
        for block in self.blocks():
            block.compile_parts()

    def get_input_embeddings(self) -> nn.Module:
        return cast(nn.Module, self.get_submodule(self.architecture.names.embedding))

    def get_output_embeddings(self) -> nn.Module:
        names = self.architecture.names
        head = names.embedding if self.architecture.tied else names.head
        return cast(nn.Module, self.get_submodule(head))

    def _plans(
        self,
        x: Tensor,
        real: Tensor | None,
        sequences: Sequences | None,
        cache: KeyValueCache | None,
        places: Tensor | None,
        blocks: Blocks | None,
    ) -> Sequence[Plan]:
        """Return how each layer attends."""
        if cache is not None:
            return cache.plans(places, real, x.shape[1], blocks)
        plan: Plan
        if blocks is None:
            plan = plan_attention(real, sequences, x.device, x.dtype, flash=self.flash_attention)
        else:
            width = x.shape[1] // blocks.halves
            lengths = (width,) if sequences is None else sequences.lengths
            if self.flex_attention and has_flex(x.device, self.architecture.head_dim):
                plan = plan_flex(blocks, lengths, real, x.device)
            else:
                plan = plan_blocks(blocks, lengths, real)
        return [plan] * self.architecture.num_layers

    def _positions(
        self,
        x: Tensor,
        real: Tensor | None,
        sequences: Sequences | None,
        places: Tensor | None,
        blocks: Blocks | None,
    ) -> Tensor:
        """Return the position of each token in its sequence, [L] or [B, L]."""
        halves = 1 if blocks is None else blocks.halves
        if sequences is not None:
            counted = sequences.places.to(x.device)
        elif real is not None and self.architecture.counts_real:
            counted = (real.cumsum(1) - 1).masked_fill(~real, 1)
            counted = counted if places is None else counted.gather(1, places)
        elif places is None:
            counted = torch.arange(x.shape[1] // halves, device=x.device)
        else:
            counted = places
        return torch.cat([counted] * halves, dim=-1)


def _check_sequences(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    sequences: Sequences | None,
    blocks: Blocks | None,
) -> None:
    halves, got = 1 if blocks is None else blocks.halves, list(input_ids.shape)
    if sequences is not None:
        wanted = [1, halves * sum(sequences.lengths)]
        if got != wanted or attention_mask is not None:
            raise ValueError(f"sequences: input_ids must be {wanted}, without a mask, got {got}")
    elif got[1] % halves:
        raise ValueError(f"blocks: input_ids must be two halves of one length, got {got}")


def _check_cache(cache: KeyValueCache | None, places: Tensor | None, blocks: Blocks | None) -> None:
    if places is not None and cache is None:
        raise ValueError("places: the positions between them need a cache")
    if cache is not None and blocks is not None and blocks.doubled:
        raise ValueError("blocks: rows of two halves have no cache")


def _shifted(x: Tensor, positions: Tensor) -> Tensor:
    """Move what predicts the next token to the token's position.

    The first of a sequence has nothing before it and stays.
    """
    before = torch.arange(x.shape[1], device=x.device) - (positions > 0).long()  # [L] or [B, L]
    before = before.clamp(min=0).expand(x.shape[:2])
    return x.gather(1, before[..., None].expand_as(x))
