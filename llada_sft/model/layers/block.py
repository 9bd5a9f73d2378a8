"""A block: attention, then an MLP or experts, around the residual stream.

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

from llada_sft.model.families.architecture import Architecture, Experts, last_part
from llada_sft.model.layers.attention import Plan, attend, rotate_both
from llada_sft.model.layers.basic import Fp32Linear, Linear, RMSNorm, add_module
from llada_sft.model.layers.experts import Choose, StackedExperts, route


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return SiLU(gate) · up."""
    return F.silu(gate) * up


class Block(nn.Module):
    """Attention, then a SwiGLU MLP or experts, each normalised first and added to the stream.

    Attributes:
        swiglu: `swiglu`, or a kernel that computes the same.
        rotate: `rotate_both`, or a kernel that computes the same.
    """

    def __init__(self, network: Architecture, layer: int) -> None:
        super().__init__()
        self.swiglu, self.rotate = swiglu, rotate_both
        self.names = names = network.names.of_block
        self.head_dim, self.clip_qkv = network.head_dim, network.clip_qkv
        self.has_qk_norm = network.qk_norm
        width, features = network.width, network.num_heads * network.head_dim
        self.num_of_each = [network.num_heads, network.num_kv_heads, network.num_kv_heads]
        add_module(self, names.attn_norm, RMSNorm(width, network.norm_eps))
        for name, size in network.qkv_sizes():
            add_module(self, name, Linear(width, size, network.qkv_bias))
        if network.qk_norm:
            add_module(self, names.q_norm, RMSNorm(network.head_dim, network.norm_eps))
            add_module(self, names.k_norm, RMSNorm(network.head_dim, network.norm_eps))
        add_module(self, names.attn_out, Linear(features, width, network.out_bias))
        add_module(self, names.mlp_norm, RMSNorm(width, network.norm_eps))
        self.has_experts, self.has_shared = network.has_experts(layer), False
        if self.has_experts:
            self._add_experts(width, cast(Experts, network.experts))
        else:
            self._add_mlp((names.gate, names.up, names.down), width, network.mlp_size)

    def _add_mlp(self, names: tuple[str, str, str], width: int, size: int) -> None:
        gate, up, down = names
        for name in (gate, up):
            add_module(self, name, Linear(width, size))
        add_module(self, down, Linear(size, width))

    def _add_experts(self, width: int, experts: Experts) -> None:
        names = self.names
        self.of_router = router = experts.router
        kind = Fp32Linear if router.fp32 else Linear
        add_module(self, names.router, kind(width, experts.num_experts))
        matrices = (last_part(names.gate), last_part(names.up), last_part(names.down))
        stacks = StackedExperts(experts.num_experts, width, experts.size, matrices)
        add_module(self, names.experts, stacks)
        if router.bias != "none":
            parent, _, name = names.expert_bias.rpartition(".")
            # `float`: inside zero.Init, torch.zeros has the dtype of the weights.
            values = torch.zeros(experts.num_experts).float()
            self.get_submodule(parent).register_buffer(name, values)
        self.has_shared = experts.shared_size is not None
        if experts.shared_size is not None:
            shared = names.shared_gate, names.shared_up, names.shared_down
            self._add_mlp(shared, width, experts.shared_size)

    def forward(
        self, x: Tensor, rotary: Tensor, how: Plan, choose: Choose | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Compute a layer.

        Attention by itself is between two parts: it depends on the lengths of the sequences, for
        each of which a compiled function would be compiled again.

        Args:
            x: [B, L, C] floating.
            rotary: What `rotary_table` returned.
            how: What `plan_attention` returned.
            choose: Finds the experts of each token, where the block has experts.

        Returns:
            [B, L, C], and the logits of the router, [B·L, E], where the block has experts.
        """
        q, k, v = self._before_attention(x, rotary)
        mixed = attend(q, k, v, how)
        if not self.has_experts:
            return self._after_attention(x, mixed), None
        assert choose is not None
        x, y, shared = self._before_experts(x, mixed)
        computed, logits = self._run_experts(y.flatten(0, 1), choose)
        computed = computed.view_as(x)
        return x + (computed if shared is None else computed + shared), logits

    def compile_parts(self) -> None:
        """Compile what is before and after attention, for any length; not the experts.

        The module itself, with ZeRO-3's hooks, is not compiled; the hooks of modules inside it
        would be. So under ZeRO-3 the block must be fetched as one (`deepspeed.leaf_blocks`).
        """
        after = "_before_experts" if self.has_experts else "_after_attention"
        for name in ("_before_attention", after):
            setattr(self, name, torch.compile(getattr(self, name), dynamic=True))

    def _before_attention(self, x: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        names = self.names
        y = self._run(names.attn_norm, x)
        if names.qkv:
            # [B, L, H, D], and twice [B, L, K, D]
            together = self._heads(self._run(names.qkv, y))
            q, k, v = torch.split(together, self.num_of_each, dim=2)
        else:
            q, k, v = (self._heads(self._run(name, y)) for name in (names.q, names.k, names.v))
        if self.has_qk_norm:
            q, k = self._run(names.q_norm, q), self._run(names.k_norm, k)
        if self.clip_qkv is not None:
            q, k, v = (features.clamp(-self.clip_qkv, self.clip_qkv) for features in (q, k, v))
        return *self.rotate(q, k, rotary), v

    def _after_attention(self, x: Tensor, mixed: Tensor) -> Tensor:
        names = self.names
        x = x + self._run(names.attn_out, mixed.flatten(2))
        y = self._run(names.mlp_norm, x)
        return x + self._run_mlp(y, names.gate, names.up, names.down)

    def _before_experts(self, x: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the stream, what the experts get, and what the shared expert makes of it."""
        names = self.names
        x = x + self._run(names.attn_out, mixed.flatten(2))
        y = self._run(names.mlp_norm, x)
        shared = None
        if self.has_shared:
            shared = self._run_mlp(y, names.shared_gate, names.shared_up, names.shared_down)
        return x, y, shared

    def _run_experts(self, y: Tensor, choose: Choose) -> tuple[Tensor, Tensor]:
        """Return what the experts make of [B·L, C], and the router's logits."""
        logits = self._run(self.names.router, y)
        chosen, weights = route(logits, self._expert_bias(), choose, self.of_router)
        experts = self.get_submodule(self.names.experts)
        return cast(Tensor, experts(y, chosen, weights)), logits

    def _expert_bias(self) -> Tensor | None:
        if self.of_router.bias == "none":
            return None
        parent, _, name = self.names.expert_bias.rpartition(".")
        holder = self.get_submodule(parent)
        # LoRA may have wrapped the router.
        return cast(Tensor, getattr(holder, "base_layer", holder).get_buffer(name))

    def _run_mlp(self, y: Tensor, gate: str, up: str, down: str) -> Tensor:
        return self._run(down, self.swiglu(self._run(gate, y), self._run(up, y)))

    def _run(self, name: str, x: Tensor) -> Tensor:
        return cast(Tensor, self.get_submodule(name)(x))

    def _heads(self, projected: Tensor) -> Tensor:
        """Split [B, L, H·D] into [B, L, H, D]."""
        return projected.view(*projected.shape[:2], -1, self.head_dim)
