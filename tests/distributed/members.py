"""Tiny members of the family, with random weights and the demo's tokenizer."""

from pathlib import Path
from typing import Any

import torch

from llada_sft.data.examples.tokenizer import load_tokenizer
from llada_sft.model import NetworkConfig, build_model
from llada_sft.model.export import export_checkpoint, network_tensors
from llada_sft.model.families import dream, llada, llada2, llada_moe
from llada_sft.model.families.family import Family

_LLADA: dict[str, Any] = {
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "mlp_hidden_size": 48,
    "max_sequence_length": 64,
}
_DREAM: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
_MOE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "dense_intermediate_size": 48,
    "expert_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
    "moe_layer_freq": [0, 1],
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
}
_LLADA2: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "attention_dropout": 0.0,
    "use_qkv_bias": True,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_shared_experts": 1,
    "first_k_dense_replace": 1,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
    "max_position_embeddings": 64,
}
MEMBERS: dict[str, tuple[Family, dict[str, Any]]] = {
    "dense": (llada.FAMILY, _LLADA),
    "tied": (llada.FAMILY, {**_LLADA, "weight_tying": True}),
    "dream": (dream.FAMILY, _DREAM),
    "moe": (llada_moe.FAMILY, _MOE),
    "llada2": (llada2.FAMILY, _LLADA2),
}


def write_member(name: str, tokenizer_dir: Path, out: Path, **more: int) -> Path:
    """Write a model directory of a member, with some sizes changed."""
    family, sizes = MEMBERS[name]
    sizes = {**sizes, **more}
    tokenizer = load_tokenizer(tokenizer_dir)
    eos = tokenizer.eos_token_id
    ids = {"mask_token_id": tokenizer.mask_token_id, "eos_token_id": eos, "pad_token_id": eos}
    values = family.config_json(**sizes, **ids, vocab_size=len(tokenizer))
    network = build_model(NetworkConfig(values), seed=3)
    for buffer in network.buffers():
        buffer.copy_(torch.linspace(-0.1, 0.1, len(buffer)))
    export_checkpoint(network_tensors(network), network.config, tokenizer_dir, out, torch.float32)
    return out
