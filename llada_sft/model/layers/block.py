"""A block: attention, then an MLP, around the residual stream.

Its parts have the official names, which differ between members of the family; so a part is looked
up by its name when it runs, and finds there what LoRA may have put in its place.

Under ZeRO-3 a parameter exists only while its own module runs. So every weight belongs to a module
that is *called*, and a block is recomputed as a whole.

Shapes: B rows, L positions, C width of the residual stream, H query heads, K key and value
heads, D features of a head.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llada_sft.model.families.architecture import Architecture
from llada_sft.model.layers.attention import Plan, attend, rotate
from llada_sft.model.layers.basic import Linear, RMSNorm, add_module


class Block(nn.Module):
    """Attention, then a SwiGLU MLP, each normalised first and added to the residual stream."""

    def __init__(self, network: Architecture, layer: int) -> None:
        super().__init__()
        self.names = names = network.names.of_block
        self.head_dim, self.clip_qkv = network.head_dim, network.clip_qkv
        self.has_qk_norm = network.qk_norm
        width, features = network.width, network.num_heads * network.head_dim
        kv_features = network.num_kv_heads * network.head_dim
        add_module(self, names.attn_norm, RMSNorm(width, network.norm_eps))
        for name, size in ((names.q, features), (names.k, kv_features), (names.v, kv_features)):
            add_module(self, name, Linear(width, size, network.qkv_bias))
        if network.qk_norm:
            add_module(self, names.q_norm, RMSNorm(network.head_dim, network.norm_eps))
            add_module(self, names.k_norm, RMSNorm(network.head_dim, network.norm_eps))
        add_module(self, names.attn_out, Linear(features, width, network.out_bias))
        add_module(self, names.mlp_norm, RMSNorm(width, network.norm_eps))
        for name in (names.gate, names.up):
            add_module(self, name, Linear(width, network.mlp_size))
        add_module(self, names.down, Linear(network.mlp_size, width))

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
        names = self.names
        y = self._run(names.attn_norm, x)
        q = self._heads(self._run(names.q, y))  # [B, L, H, D]
        k, v = self._heads(self._run(names.k, y)), self._heads(self._run(names.v, y))
        if self.has_qk_norm:
            q, k = self._run(names.q_norm, q), self._run(names.k_norm, k)
        if self.clip_qkv is not None:
            q, k, v = (features.clamp(-self.clip_qkv, self.clip_qkv) for features in (q, k, v))
        return rotate(q, rotary), rotate(k, rotary), v

    def _after_attention(self, x: Tensor, mixed: Tensor) -> Tensor:
        names = self.names
        x = x + self._run(names.attn_out, mixed.flatten(2))
        y = self._run(names.mlp_norm, x)
        inside = F.silu(self._run(names.gate, y)) * self._run(names.up, y)
        return x + self._run(names.down, inside)

    def _run(self, name: str, x: Tensor) -> Tensor:
        return cast(Tensor, self.get_submodule(name)(x))

    def _heads(self, projected: Tensor) -> Tensor:
        """Split [B, L, H·D] into [B, L, H, D]."""
        return projected.view(*projected.shape[:2], -1, self.head_dim)
