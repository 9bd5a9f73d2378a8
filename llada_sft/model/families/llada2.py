"""LLaDA2.0 and LLaDA2.1: experts in groups, chosen by sigmoid scores. mini (16B) and flash (103B).

Source: LLaDA2.0 (arXiv 2512.15745), and the released modeling_llada2_moe.py. That code ignores
`use_qk_norm`, `norm_topk_prob`, `score_function` and `router_dtype`: it always normalises queries
and keys, scores by the sigmoid in fp32, and normalises what the chosen experts count. So does this
one, whatever these keys say. Neither has a loss that keeps the load of experts even.

No token id is a constant here: the released config.json names no mask token.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from llada_sft.model.families import keys
from llada_sft.model.families.architecture import Architecture, BlockNames, Experts, Names, Router
from llada_sft.model.families.family import Family
from llada_sft.model.families.llada_moe import CHAT_TEMPLATE

# The released one; dFactory's, whose files have the experts of a layer in one tensor; and dLLM's
# name of 2.1, which is the same network.
MODEL_TYPE, STACKED_MODEL_TYPE = "llada2_moe", "llada2_moe_veomni"
_MODEL_TYPES = (MODEL_TYPE, STACKED_MODEL_TYPE, "llada21_moe")
ARCHITECTURES = ["LLaDA2MoeModelLM"]

_NAMES = Names(
    embedding="model.word_embeddings",
    blocks="model.layers",
    final_norm="model.norm",
    head="lm_head",
    of_block=BlockNames(
        attn_norm="input_layernorm",
        qkv="attention.query_key_value",
        q_norm="attention.query_layernorm",
        k_norm="attention.key_layernorm",
        attn_out="attention.dense",
        mlp_norm="post_attention_layernorm",
        gate="mlp.gate_proj",
        up="mlp.up_proj",
        down="mlp.down_proj",
        router="mlp.gate",
        experts="mlp.experts",
        expert_bias="mlp.gate.expert_bias",
        shared_gate="mlp.shared_experts.gate_proj",
        shared_up="mlp.shared_experts.up_proj",
        shared_down="mlp.shared_experts.down_proj",
    ),
)
# What the network implements; the first value is what a missing key means.
_IMPLEMENTED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "rope_scaling": (None,),
    "use_sliding_window": (False,),
}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
_SIZES_OF_EXPERTS = ("num_experts_per_tok", "n_group", "topk_group", "moe_intermediate_size")
_BOOLS = ("tie_word_embeddings", "use_qkv_bias", "use_bias")
_TOKENS = ("mask_token_id", "eos_token_id", "pad_token_id")

DEFAULTS: dict[str, Any] = {
    "vocab_size": 30592,
    "hidden_size": 1024,
    "intermediate_size": None,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 0,
    "hidden_act": "silu",
    "use_qkv_bias": False,
    "use_bias": True,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "embedding_dropout": 0.1,
    "attention_dropout": 0.1,
    "output_dropout": 0.1,
    "max_position_embeddings": 16384,
    "rope_theta": 10000.0,
    "use_cache": True,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "rope_scaling": None,
    "pad_token_id": 126081,
    "num_experts": 16,
    "num_shared_experts": 0,
    "num_experts_per_tok": 2,
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
    "moe_intermediate_size": None,
    "first_k_dense_replace": 0,
    "head_dim": None,
    "output_router_logits": False,
    "partial_rotary_factor": 0.5,
}
# LLaDA2.0-mini's values, where they are not what a missing key means.
MINI: dict[str, Any] = {
    "vocab_size": 157184,
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "num_hidden_layers": 20,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "use_bias": False,
    "rms_norm_eps": 1e-6,
    "embedding_dropout": 0.0,
    "attention_dropout": 0.0,
    "output_dropout": 0.0,
    "rope_theta": 600000,
    "pad_token_id": 156892,
    "eos_token_id": 156892,
    "num_experts": 256,
    "num_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "first_k_dense_replace": 1,
}


def _describes(values: Mapping[str, Any]) -> bool:
    return values.get("architectures") == ARCHITECTURES or values.get("model_type") in _MODEL_TYPES


def _problems(values: Mapping[str, Any]) -> Iterator[str]:
    values = {**DEFAULTS, **values}
    lines = list(keys.implemented(values, _IMPLEMENTED))
    for key in _SIZES:
        lines += keys.whole_number(values, key)
    lines += keys.whole_number(values, "head_dim", optional=True)
    lines += keys.whole_number(values, "first_k_dense_replace", 0)
    for key in ("num_key_value_heads", "num_experts", "num_shared_experts", *_TOKENS):
        lines += keys.whole_number(values, key, 0, optional=True)
    for key in _BOOLS:
        lines += keys.choice_of_bool(values, key)
    for key in ("rope_theta", "rms_norm_eps", "partial_rotary_factor", "routed_scaling_factor"):
        lines += keys.positive(values, key)
    if values["attention_dropout"] != 0:
        lines += keys.positive(values, "attention_dropout")
    if not lines:
        lines += _problems_of_layers(values)
    return iter(lines or _contradictions(values))


def _problems_of_layers(values: Mapping[str, Any]) -> Iterator[str]:
    """Check the sizes that dense layers and those with experts need."""
    layers = _layers_with_experts(values)
    if not all(layers):
        yield from keys.whole_number(values, "intermediate_size")
    if any(layers):
        for key in _SIZES_OF_EXPERTS:
            yield from keys.whole_number(values, key)


def _contradictions(values: Mapping[str, Any]) -> Iterator[str]:
    heads, kv_heads = values["num_attention_heads"], _num_kv_heads(values)
    if heads % kv_heads:
        yield f"num_key_value_heads: must divide num_attention_heads, {heads}, got {kv_heads}"
    head_dim, rotated = _head_dim(values), _rotary_dim(values)
    # Pairs of features are rotated: one more where the number is odd, as in the released code.
    if not 0 < rotated + rotated % 2 <= head_dim:
        yield (
            f"partial_rotary_factor: must make pairs of the {head_dim} features of a head,"
            f" got {values['partial_rotary_factor']}, {rotated} of them"
        )
    if any(_layers_with_experts(values)):
        yield from _contradictions_of_experts(values)
    yield from keys.tokens_fit(values, _TOKENS, values["vocab_size"], "vocab_size")


def _contradictions_of_experts(values: Mapping[str, Any]) -> Iterator[str]:
    number, groups, kept = (values[key] for key in ("num_experts", "n_group", "topk_group"))
    if number % groups or number // groups < 2:
        yield f"num_experts / n_group: must be a whole number above 1, got {number} / {groups}"
    elif kept > groups:
        yield f"topk_group: must be at most n_group, {groups}, got {kept}"
    elif values["num_experts_per_tok"] > kept * (number // groups):
        yield (
            f"num_experts_per_tok: must be at most the {kept * (number // groups)} experts of"
            f" topk_group groups, got {values['num_experts_per_tok']}"
        )


def _layers_with_experts(values: Mapping[str, Any]) -> tuple[bool, ...]:
    first = values["first_k_dense_replace"]
    has_experts = bool(values["num_experts"])
    return tuple(has_experts and layer >= first for layer in range(values["num_hidden_layers"]))


def _num_kv_heads(values: Mapping[str, Any]) -> int:
    return int(values["num_key_value_heads"] or values["num_attention_heads"])


def _head_dim(values: Mapping[str, Any]) -> int:
    return int(values["head_dim"] or values["hidden_size"] // values["num_attention_heads"])


def _rotary_dim(values: Mapping[str, Any]) -> int:
    return int(_head_dim(values) * values["partial_rotary_factor"])


def _architecture(values: Mapping[str, Any]) -> Architecture:
    values = {**DEFAULTS, **values}
    layers = _layers_with_experts(values)
    return Architecture(
        names=_NAMES,
        width=values["hidden_size"],
        num_layers=values["num_hidden_layers"],
        num_heads=values["num_attention_heads"],
        num_kv_heads=_num_kv_heads(values),
        head_dim=_head_dim(values),
        mlp_size=values["intermediate_size"] or 0,
        vocab_size=values["vocab_size"],
        num_embeddings=values["vocab_size"],
        max_length=values["max_position_embeddings"],
        norm_eps=values["rms_norm_eps"],
        rope_theta=values["rope_theta"],
        rotary_dim=_rotary_dim(values),
        mask_token_id=values.get("mask_token_id"),
        eos_token_id=values.get("eos_token_id"),
        pad_token_id=values["pad_token_id"],
        qk_norm=True,
        qkv_bias=bool(values["use_qkv_bias"]),
        out_bias=bool(values["use_bias"]),
        tied=bool(values["tie_word_embeddings"]),
        pad_row=values["pad_token_id"],
        experts=_experts(values, layers) if any(layers) else None,
        attention_dropout=values["attention_dropout"],
        decodes_in_blocks=True,
    )


def _experts(values: Mapping[str, Any], layers: tuple[bool, ...]) -> Experts:
    shared = values["num_shared_experts"]
    return Experts(
        layers=layers,
        num_experts=values["num_experts"],
        per_token=values["num_experts_per_tok"],
        size=values["moe_intermediate_size"],
        # Those that every token has are one MLP; of none, files may have matrices without rows.
        shared_size=shared * values["moe_intermediate_size"] if shared else None,
        router=Router(
            scores="sigmoid",
            bias="choice",
            num_groups=values["n_group"],
            kept_groups=values["topk_group"],
            normalised=True,
            scale=values["routed_scaling_factor"],
            fp32=True,
        ),
        balance_weight=0.0,
    )


FAMILY = Family(
    name="LLaDA2",
    identity={"model_type": MODEL_TYPE, "architectures": ARCHITECTURES},
    describes=_describes,
    problems=_problems,
    architecture=_architecture,
    defaults=DEFAULTS,
    hub_code={
        "AutoConfig": "inclusionAI/LLaDA2.0-mini--configuration_llada2_moe.LLaDA2MoeConfig",
        "AutoModel": "inclusionAI/LLaDA2.0-mini--modeling_llada2_moe.LLaDA2MoeModel",
        "AutoModelForCausalLM": "inclusionAI/LLaDA2.0-mini--modeling_llada2_moe.LLaDA2MoeModelLM",
    },
    # The tokenizer has the role marks of LLaDA-MoE's.
    chat_template=CHAT_TEMPLATE,
    stacked_model_type=STACKED_MODEL_TYPE,
)
