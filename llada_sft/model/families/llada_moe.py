"""LLaDA-MoE: a mixture of experts in place of the MLP, under Qwen's names. LLaDA-MoE-7B-A1B.

Source: LLaDA-MoE (arXiv 2509.24389), and the released modeling_lladamoe.py. That code ignores
`norm_topk_prob`, `moe_router_score_function`, `routed_scaling_factor` and the groups of the router:
it always takes the softmax, does not normalise the chosen probabilities, and does not scale them.
So does this one, whatever these keys say.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from llada_sft.model.families import keys
from llada_sft.model.families.architecture import Architecture, Experts, Router
from llada_sft.model.families.family import Family
from llada_sft.model.families.qwen_names import NAMES

ARCHITECTURES = ["LLaDAMoEModelLM"]
# Of the released tokenizer; config.json need not name them.
MASK_TOKEN_ID = 156895
EOS_TOKEN_ID = 156892
# The layout that the released checkpoints were trained with. The end of the line is inside an
# expression: Jinja drops one at the end of a template.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% set role = 'HUMAN' if message['role'] == 'user' else message['role'] | upper %}"
    "{{ '<role>' + role + '</role>' + message['content'] + '<|role_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<role>ASSISTANT</role>' }}{% endif %}"
)

# What the network implements; the first value is what a missing key means.
_IMPLEMENTED: dict[str, tuple[object, ...]] = {
    "attention_dropout": (0.0,),
    "hidden_act": ("silu",),
    "rope_scaling": (None,),
}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
_OPTIONAL_SIZES = ("num_key_value_heads", "shared_expert_intermediate_size")
_BOOLS = ("tie_word_embeddings", "attention_bias", "qk_layernorm", "moe_router_enable_expert_bias")
_TOKENS = ("mask_token_id", "eos_token_id", "pad_token_id")

DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": None,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "use_cache": False,
    "tie_word_embeddings": False,
    "rope_scaling": None,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "clip_qkv": None,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.01,
    "norm_topk_prob": None,
    "qk_layernorm": None,
    "shared_expert_intermediate_size": None,
    "moe_router_enable_expert_bias": None,
    "moe_router_score_function": None,
    "routed_scaling_factor": 1,
    "router_num_group": -2,
    "router_topk_group": -2,
}


# What must be given, with LLaDA-MoE-7B-A1B's values. Its file has two more that are not what a
# missing key means: qk_layernorm is true there, and max_position_embeddings 8192.
_SIZES_OF_7B: dict[str, Any] = {
    "vocab_size": 157184,
    "hidden_size": 2048,
    "expert_intermediate_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "rope_theta": 50000,
    "partial_rotary_factor": 1,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "moe_layer_freq": [1] * 16,
}


def _describes(values: Mapping[str, Any]) -> bool:
    if values.get("architectures") == ARCHITECTURES:
        return True
    has_experts = values.get("num_experts") is not None
    return values.get("model_type") in ("llada", "lladamoe") and has_experts


def _problems(values: Mapping[str, Any]) -> Iterator[str]:
    values = {**DEFAULTS, **values}
    lines = list(keys.implemented(values, _IMPLEMENTED))
    for key in (*_SIZES, *_OPTIONAL_SIZES):
        lines += keys.whole_number(values, key, optional=key in _OPTIONAL_SIZES)
    for key in _BOOLS:
        lines += keys.choice_of_bool(values, key)
    for key in _TOKENS:
        lines += keys.whole_number(values, key, 0, optional=True)
    for key in ("rope_theta", "rms_norm_eps", "partial_rotary_factor"):
        lines += keys.positive(values, key)
    if values["clip_qkv"] is not None:
        lines += keys.positive(values, "clip_qkv")
    if values["router_aux_loss_coef"] != 0:
        lines += keys.positive(values, "router_aux_loss_coef")
    if not lines:
        lines += _problems_of_layers(values)
    return iter(lines or _contradictions(values))


def _problems_of_layers(values: Mapping[str, Any]) -> Iterator[str]:
    """Check which layers have experts, and the sizes that those and the others need."""
    layers, number = values.get("moe_layer_freq"), values["num_hidden_layers"]
    plain = isinstance(layers, list) and all(layer in (0, 1) for layer in layers)
    if not plain or len(layers or ()) != number:
        yield f"moe_layer_freq: must be a list of {number} numbers, 0 or 1, got {layers}"
        return
    if not all(values["moe_layer_freq"]):
        yield from keys.whole_number(values, "dense_intermediate_size")
    if any(values["moe_layer_freq"]):
        for key in ("num_experts", "num_experts_per_tok", "expert_intermediate_size"):
            yield from keys.whole_number(values, key)


def _contradictions(values: Mapping[str, Any]) -> Iterator[str]:
    yield from keys.divides(values, "hidden_size", "num_attention_heads", "num_key_value_heads")
    head_dim = values["hidden_size"] // values["num_attention_heads"]
    rotated, factor = _rotary_dim(values, head_dim), values["partial_rotary_factor"]
    if not 0 < rotated <= head_dim or rotated % 2:
        yield (
            "partial_rotary_factor: must make an even number of the "
            f"{head_dim} features of a head, got {factor}, {rotated} of them"
        )
    if any(values["moe_layer_freq"]) and values["num_experts_per_tok"] > values["num_experts"]:
        chosen, there = values["num_experts_per_tok"], values["num_experts"]
        yield f"num_experts_per_tok: must be at most num_experts, {there}, got {chosen}"
    yield from keys.tokens_fit(values, _TOKENS, values["vocab_size"], "vocab_size")


def _rotary_dim(values: Mapping[str, Any], head_dim: int) -> int:
    return int(head_dim * values["partial_rotary_factor"])


def _architecture(values: Mapping[str, Any]) -> Architecture:
    values = {**DEFAULTS, **values}
    width, num_heads = values["hidden_size"], values["num_attention_heads"]
    has_bias, eos = bool(values["attention_bias"]), _token(values, "eos_token_id", EOS_TOKEN_ID)
    pad = values.get("pad_token_id")
    pad = eos if pad is None else pad
    return Architecture(
        names=NAMES,
        width=width,
        num_layers=values["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=values["num_key_value_heads"] or num_heads,
        head_dim=width // num_heads,
        mlp_size=values.get("dense_intermediate_size") or 0,
        vocab_size=values["vocab_size"],
        num_embeddings=values["vocab_size"],
        max_length=values["max_position_embeddings"],
        norm_eps=values["rms_norm_eps"],
        rope_theta=values["rope_theta"],
        rotary_dim=_rotary_dim(values, width // num_heads),
        mask_token_id=_token(values, "mask_token_id", MASK_TOKEN_ID),
        eos_token_id=eos,
        decodes_in_blocks=values.get("decodes_in_blocks", False),
        pad_token_id=pad,
        qk_norm=bool(values["qk_layernorm"]),
        qkv_bias=has_bias,
        out_bias=has_bias,
        clip_qkv=values["clip_qkv"],
        tied=bool(values["tie_word_embeddings"]),
        pad_row=pad,
        experts=_experts(values) if any(values["moe_layer_freq"]) else None,
    )


def _token(values: Mapping[str, Any], key: str, known: int) -> int | None:
    """Return a token that config.json names, or the released one if the vocabulary has it."""
    named: int | None = values.get(key)
    return known if named is None and known < values["vocab_size"] else named


def _experts(values: Mapping[str, Any]) -> Experts:
    return Experts(
        layers=tuple(map(bool, values["moe_layer_freq"])),
        num_experts=values["num_experts"],
        per_token=values["num_experts_per_tok"],
        size=values["expert_intermediate_size"],
        shared_size=values["shared_expert_intermediate_size"],
        router=Router(bias="weights" if values["moe_router_enable_expert_bias"] else "none"),
        balance_weight=values["router_aux_loss_coef"],
    )


FAMILY = Family(
    name="LLaDA-MoE",
    # The hub's model_type is LLaDA's.
    identity={"model_type": "llada", "architectures": ARCHITECTURES},
    describes=_describes,
    problems=_problems,
    architecture=_architecture,
    defaults=DEFAULTS | _SIZES_OF_7B,
    hub_code={
        "AutoConfig": "inclusionAI/LLaDA-MoE-7B-A1B-Base--configuration_lladamoe.LLaDAConfig",
        "AutoModel": "inclusionAI/LLaDA-MoE-7B-A1B-Base--modeling_lladamoe.LLaDAMoEModelLM",
        "AutoModelForCausalLM": (
            "inclusionAI/LLaDA-MoE-7B-A1B-Base--modeling_lladamoe.LLaDAMoEModelLM"
        ),
    },
    chat_template=CHAT_TEMPLATE,
)
