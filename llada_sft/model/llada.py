"""The network: a Llama stack without the causal mask, under the official parameter names.

    embedding -> blocks (attention, SwiGLU MLP) -> norm -> head

Under ZeRO-3 a parameter exists only while its own module runs. So every weight belongs to a module
that is *called* (the head included), no weight is read by attribute from outside, and a block is
recomputed as a whole.

Shapes: B rows, L positions, C width of the residual stream, H query heads, K key and value
heads, D features of a head, V rows of the head, M chosen positions.

Source: LLaDA (arXiv 2502.09992), section 2 and the official modeling_llada.py.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from llada_sft.model.activations import Checkpointing, run_block
from llada_sft.model.attention import (
    Plan,
    Sequences,
    attend,
    plan_attention,
    rotary_table,
    rotate,
)
from llada_sft.model.configuration import LLaDAConfig
from llada_sft.model.head import Head


class Linear(nn.Linear):
    """A matrix without bias; its values are whatever memory held until it is filled."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Skip torch's initialisation: minutes for 8B, and thrown away."""


class Embedding(nn.Embedding):
    """A table of token vectors; not initialised either."""

    def reset_parameters(self) -> None:
        """Skip torch's initialisation."""


class RMSNorm(nn.Module):
    """x / RMS(x) · weight, normalised in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        normalised = F.rms_norm(x.float(), x.shape[-1:], eps=self.eps)
        # Cast before the product, as the official code does: bf16 rounds differently otherwise.
        return self.weight * normalised.to(x.dtype)


class Block(nn.Module):
    """Attention, then a SwiGLU MLP, each normalised first and added to the residual stream."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        width, kv_width = config.d_model, config.num_kv_heads * config.head_dim
        self.head_dim: int = config.head_dim
        self.attn_norm = RMSNorm(width, config.rms_norm_eps)
        self.q_proj = Linear(width, width)
        self.k_proj = Linear(width, kv_width)
        self.v_proj = Linear(width, kv_width)
        self.attn_out = Linear(width, width)
        self.ff_norm = RMSNorm(width, config.rms_norm_eps)
        self.ff_proj = Linear(width, config.mlp_size)
        self.up_proj = Linear(width, config.mlp_size)
        self.ff_out = Linear(config.mlp_size, width)

    def forward(self, x: Tensor, rotary: Tensor, how: Plan) -> Tensor:
        """Map [B, L, C] to [B, L, C].

        Attention by itself is between the two parts: it depends on the lengths of the sequences,
        for each of which a compiled function would be compiled again.
        """
        q, k, v = self._before_attention(x, rotary)
        return self._after_attention(x, attend(q, k, v, how))

    def compile_parts(self) -> None:
        """Compile what is before and after attention, for any length.

        The module itself, with ZeRO-3's hooks, is not compiled; the hooks of modules inside it
        would be. So under ZeRO-3 the block must be fetched as one (`deepspeed.leaf_blocks`).
        """
        for name in ("_before_attention", "_after_attention"):
            setattr(self, name, torch.compile(getattr(self, name), dynamic=True))

    def _before_attention(self, x: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.attn_norm(x)
        q = rotate(self._heads(self.q_proj(y)), rotary)  # [B, L, H, D]
        k = rotate(self._heads(self.k_proj(y)), rotary)  # [B, L, K, D]
        return q, k, self._heads(self.v_proj(y))

    def _after_attention(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self.attn_out(mixed.flatten(2))
        y = self.ff_norm(x)
        mlp: Tensor = self.ff_out(F.silu(self.ff_proj(y)) * self.up_proj(y))
        return x + mlp

    def _heads(self, projected: Tensor) -> Tensor:
        """Split [B, L, H·D] into [B, L, H, D]."""
        return projected.view(*projected.shape[:2], -1, self.head_dim)


class LLaDAModel(nn.Module):
    """What the official parameter names call `model`."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        self.head_dim: int = config.head_dim
        self.rope_theta: float = config.rope_theta
        self.compiled = False
        # Of each block.
        self.checkpointing: Sequence[Checkpointing] = ["none"] * config.n_layers
        self.transformer = nn.ModuleDict(
            {
                "wte": Embedding(config.num_embeddings, config.d_model),
                "blocks": nn.ModuleList(Block(config) for _ in range(config.n_layers)),
                "ln_f": RMSNorm(config.d_model, config.rms_norm_eps),
                "ff_out": Head(config.d_model, config.num_embeddings),
            }
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        positions: Tensor | None,
        sequences: Sequences | None,
        targets: Tensor | None,
        coefficients: Tensor | None,
    ) -> Tensor:
        x = self.transformer["wte"](input_ids)  # [B, L, C]
        if sequences is None:
            places = torch.arange(x.shape[1], device=x.device)
        else:
            places = sequences.places.to(x.device)
        rotary = rotary_table(places, self.head_dim, self.rope_theta)
        how = plan_attention(attention_mask, sequences, x.device, x.dtype)
        blocks = self.transformer["blocks"].children()
        for block, checkpointing in zip(blocks, self.checkpointing, strict=True):
            x = run_block(block, checkpointing, self.compiled, x, rotary, how)
        if positions is not None:
            x = x.flatten(0, 1).index_select(0, positions)  # [M, C]
        x = self.transformer["ln_f"](x)
        out: Tensor = self.transformer["ff_out"](x, targets, coefficients)
        return out


class LLaDAModelLM(PreTrainedModel):  # type: ignore[misc]
    """LLaDA as a mask predictor.

    A `PreTrainedModel` for what others find by it (its config, PEFT's adapters); nothing of
    transformers' loading is used.
    """

    config_class = LLaDAConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _no_split_modules = ("Block",)

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__(config)
        self.model = LLaDAModel(config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        sequences: Sequences | None = None,
        targets: Tensor | None = None,
        coefficients: Tensor | None = None,
    ) -> MaskedLMOutput:
        """Predict the token at every position, or at chosen ones; or return the loss of it.

        Position i predicts token i. The head has V = `embedding_size` rows, padding of the
        vocabulary included, as in the official code.

        Args:
            input_ids: [B, L] int64.
            attention_mask: [B, L] bool or integer, non-zero at real tokens; None: all are real.
            positions: [M] int64, indices into the flattened B·L positions at which the head runs.
                Training passes the masked ones: the logits are most of the memory.
            sequences: Those that fill one row together (B is 1): each is computed as if it were
                alone. None: each row is one sequence.
            targets: [M] int64, the tokens at `positions`.
            coefficients: [M] fp32, what the cross-entropy of each is multiplied by.

        Returns:
            `.logits`: [B, L, V], or [M, V] with `positions`; of the weights' dtype. With `targets`
            only `.loss`, the sum over the positions, fp32: logits then exist piece by piece.
        """
        real = None if attention_mask is None else attention_mask.bool()
        if sequences is not None:
            wanted, got = [1, sum(sequences.lengths)], list(input_ids.shape)
            if got != wanted or attention_mask is not None:
                raise ValueError(
                    f"sequences: input_ids must be {wanted}, without a mask, got {got}"
                )
        out = self.model(input_ids, real, positions, sequences, targets, coefficients)
        return MaskedLMOutput(logits=out) if targets is None else MaskedLMOutput(loss=out)

    def set_activation_checkpointing(
        self, checkpointing: Checkpointing | Sequence[Checkpointing]
    ) -> None:
        """Choose what is kept for the backward pass: of all blocks, or of each."""
        num_blocks = len(self.model.checkpointing)
        if isinstance(checkpointing, str):
            self.model.checkpointing = [checkpointing] * num_blocks
        else:
            assert len(checkpointing) == num_blocks
            self.model.checkpointing = checkpointing

    def compile_blocks(self) -> None:
        """Compile the parts of each block."""
        self.model.compiled = True
        for block in self.model.transformer["blocks"].children():
            cast(Block, block).compile_parts()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.transformer["wte"]

    def get_output_embeddings(self) -> nn.Module:
        return self.model.transformer["ff_out"]
