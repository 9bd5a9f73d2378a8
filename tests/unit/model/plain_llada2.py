"""LLaDA2 from its formulas: token by token and head by head, from the official tensors alone.

Nothing of the package is used, so that a mistake is not made twice.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class PlainLLaDA2:
    """The network of a config.json.

    Args:
        values: config.json, every key given.
        tensors: By their official names.
        head: Name of the matrix that makes logits.
    """

    def __init__(
        self, values: Mapping[str, Any], tensors: Mapping[str, Tensor], head: str = "lm_head"
    ) -> None:
        self._values, self._tensors, self._head = values, tensors, head
        self._heads = values["num_attention_heads"]
        self._kv_heads = values["num_key_value_heads"] or self._heads
        self._head_dim = values["head_dim"] or values["hidden_size"] // self._heads

    def logits(
        self, ids: Tensor, sees: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Return the logits of one sequence, [L, V].

        Args:
            ids: [L] int64.
            sees: [L, L] bool, whether the row's position sees the column's; None: all do.
            positions: [L] int64, by which queries and keys are rotated; None: 0, 1, 2 ...
        """
        self._positions = torch.arange(len(ids)) if positions is None else positions
        x = self._tensors["model.word_embeddings.weight"][ids]
        for layer in range(self._values["num_hidden_layers"]):
            before = f"model.layers.{layer}"
            y = self._norm(x, f"{before}.input_layernorm")
            x = x + self._attention(y, f"{before}.attention", sees)
            y = self._norm(x, f"{before}.post_attention_layernorm")
            x = x + self._mixed(y, f"{before}.mlp", layer)
        return self._norm(x, "model.norm") @ self._tensors[f"{self._head}.weight"].T

    def _norm(self, x: Tensor, name: str) -> Tensor:
        root = (x.pow(2).mean(-1, keepdim=True) + self._values["rms_norm_eps"]).sqrt()
        return x / root * self._tensors[f"{name}.weight"]

    def _linear(self, x: Tensor, name: str) -> Tensor:
        product = x @ self._tensors[f"{name}.weight"].T
        return product + self._tensors.get(f"{name}.bias", torch.zeros(()))

    def _attention(self, x: Tensor, name: str, sees: Tensor | None) -> Tensor:
        rows = self._linear(x, f"{name}.query_key_value").split(self._head_dim, -1)
        queries, rest = rows[: self._heads], rows[self._heads :]
        keys, values = rest[: self._kv_heads], rest[self._kv_heads :]
        mixed = []
        for head, query in enumerate(queries):
            own = head // (self._heads // self._kv_heads)
            q = self._rotated(self._norm(query, f"{name}.query_layernorm"))
            k = self._rotated(self._norm(keys[own], f"{name}.key_layernorm"))
            scores = q @ k.T / math.sqrt(self._head_dim)
            if sees is not None:
                scores = scores.masked_fill(~sees, -math.inf)
            mixed.append(scores.softmax(-1) @ values[own])
        return self._linear(torch.cat(mixed, -1), f"{name}.dense")

    def _rotated(self, x: Tensor) -> Tensor:
        size = int(self._head_dim * self._values["partial_rotary_factor"])
        half, out = (size + 1) // 2, x.clone()
        for i in range(half):
            angle = self._positions * self._values["rope_theta"] ** (-2 * i / size)
            first, second = x[:, i], x[:, i + half]
            out[:, i] = first * angle.cos() - second * angle.sin()
            out[:, i + half] = second * angle.cos() + first * angle.sin()
        return out

    def _mlp(self, x: Tensor, name: str) -> Tensor:
        gate = self._linear(x, f"{name}.gate_proj")
        inside = gate * gate.sigmoid() * self._linear(x, f"{name}.up_proj")
        return self._linear(inside, f"{name}.down_proj")

    def _mixed(self, x: Tensor, name: str, layer: int) -> Tensor:
        values = self._values
        if not values["num_experts"] or layer < values["first_k_dense_replace"]:
            return self._mlp(x, name)
        mixed = torch.stack([self._of_token(token, name) for token in x])
        if values["num_shared_experts"]:
            mixed = mixed + self._mlp(x, f"{name}.shared_experts")
        return mixed

    def _of_token(self, x: Tensor, name: str) -> Tensor:
        values = self._values
        scores = self._linear(x, f"{name}.gate").sigmoid()
        ranked = (scores + self._tensors[f"{name}.gate.expert_bias"]).tolist()
        size = values["num_experts"] // values["n_group"]
        groups = [range(first, first + size) for first in range(0, values["num_experts"], size)]
        groups.sort(key=lambda group: -sum(sorted(ranked[e] for e in group)[-2:]))
        allowed = [e for group in groups[: values["topk_group"]] for e in group]
        chosen = sorted(allowed, key=lambda e: -ranked[e])[: values["num_experts_per_tok"]]
        total = sum(scores[e] for e in chosen) if len(chosen) > 1 else 1
        return sum(
            values["routed_scaling_factor"]
            * scores[e]
            / total
            * self._mlp(x, f"{name}.experts.{e}")
            for e in chosen
        )
