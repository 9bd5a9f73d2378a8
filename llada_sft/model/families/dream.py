"""Dream: Qwen2's layers without the causal mask; what it computes at a position predicts the next.

Source: Dream 7B (arXiv 2508.15487), and its released modeling_dream.py.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from llada_sft.model.families import keys
from llada_sft.model.families.architecture import Architecture
from llada_sft.model.families.family import Family
from llada_sft.model.families.qwen_names import NAMES

# What the network implements; the first value is what a missing key means.
_IMPLEMENTED: dict[str, tuple[object, ...]] = {
    "attention_dropout": (0.0,),
    "hidden_act": ("silu",),
    "partial_rotary_factor": (1.0, None),
    "rope_scaling": (None,),
    "tie_word_embeddings": (False, True),
    "use_sliding_window": (False,),
}
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "vocab_size",
)
_TOKENS = ("mask_token_id", "eos_token_id", "pad_token_id")

DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "attention_dropout": 0.0,
    "mask_token_id": 151666,
    "pad_token_id": 151643,
}


def _describes(values: Mapping[str, Any]) -> bool:
    return values.get("model_type") == "Dream" or values.get("architectures") == ["DreamModel"]


def _problems(values: Mapping[str, Any]) -> Iterator[str]:
    values = {**DEFAULTS, **values}
    lines = list(keys.implemented(values, _IMPLEMENTED))
    for key in _SIZES:
        lines += keys.whole_number(values, key)
    lines += keys.whole_number(values, "num_key_value_heads", optional=True)
    for key in _TOKENS:
        lines += keys.whole_number(values, key, 0, optional=key != "mask_token_id")
    lines += keys.positive(values, "rope_theta")
    lines += keys.positive(values, "rms_norm_eps")
    return iter(lines or _contradictions(values))


def _contradictions(values: Mapping[str, Any]) -> Iterator[str]:
    yield from keys.divides(values, "hidden_size", "num_attention_heads", "num_key_value_heads")
    yield from keys.tokens_fit(values, _TOKENS, values["vocab_size"], "vocab_size")


def _architecture(values: Mapping[str, Any]) -> Architecture:
    values = {**DEFAULTS, **values}
    width, num_heads = values["hidden_size"], values["num_attention_heads"]
    pad = values["pad_token_id"]
    return Architecture(
        names=NAMES,
        width=width,
        num_layers=values["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=values["num_key_value_heads"] or num_heads,
        head_dim=width // num_heads,
        mlp_size=values["intermediate_size"],
        vocab_size=values["vocab_size"],
        num_embeddings=values["vocab_size"],
        max_length=values["max_position_embeddings"],
        norm_eps=values["rms_norm_eps"],
        rope_theta=values["rope_theta"],
        rotary_dim=width // num_heads,
        mask_token_id=values["mask_token_id"],
        # Dream's chats end with its padding token where config.json names no other.
        eos_token_id=values.get("eos_token_id", pad),
        decodes_in_blocks=values.get("decodes_in_blocks", False),
        pad_token_id=pad,
        qkv_bias=True,
        tied=values["tie_word_embeddings"],
        shifted=True,
        counts_real=True,
        pad_row=pad,
    )


FAMILY = Family(
    name="Dream",
    identity={"model_type": "Dream", "architectures": ["DreamModel"]},
    describes=_describes,
    problems=_problems,
    architecture=_architecture,
    defaults=DEFAULTS,
    hub_code={
        "AutoConfig": "Dream-org/Dream-v0-Base-7B--configuration_dream.DreamConfig",
        "AutoModel": "Dream-org/Dream-v0-Base-7B--modeling_dream.DreamModel",
    },
)
