"""LLaDA: a Llama stack, under OLMo's names. LLaDA-8B, LLaDA-1.5, and iLLaDA, whose head is tied.

Source: LLaDA (arXiv 2502.09992), section 2, with the official configuration_llada.py; iLLaDA
(arXiv 2606.25331).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from llada_sft.model.families import keys
from llada_sft.model.families.architecture import Architecture, BlockNames, Names
from llada_sft.model.families.family import Family

_NAMES = Names(
    embedding="model.transformer.wte",
    blocks="model.transformer.blocks",
    final_norm="model.transformer.ln_f",
    head="model.transformer.ff_out",
    of_block=BlockNames(
        attn_norm="attn_norm",
        q="q_proj",
        k="k_proj",
        v="v_proj",
        attn_out="attn_out",
        mlp_norm="ff_norm",
        gate="ff_proj",
        up="up_proj",
        down="ff_out",
    ),
)
# What the network implements. None is the official default and means the same as the first value.
_IMPLEMENTED: dict[str, tuple[object, ...]] = {
    "activation_type": ("silu",),
    "alibi": (False,),
    "attention_dropout": (0.0,),
    "attention_layer_norm": (False,),
    "bias_for_layer_norm": (False, None),
    "block_group_size": (1,),
    "block_type": ("llama",),
    "embedding_dropout": (0.0,),
    "include_bias": (False,),
    "include_qkv_bias": (False, None),
    "input_emb_norm": (False,),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "residual_dropout": (0.0,),
    "rope": (True,),
    "rope_full_precision": (True,),
    # No official keys; files of other networks with this model_type have them.
    "clip_qkv": (None,),
    "partial_rotary_factor": (1.0, None),
    "rope_scaling": (None,),
    "scale_logits": (False,),
}
_SIZES = ("d_model", "n_layers", "n_heads", "mlp_hidden_size", "max_sequence_length", "vocab_size")
# May be missing, or null.
_OPTIONAL_SIZES = ("mlp_hidden_size", "n_kv_heads", "mlp_ratio", "embedding_size")
_TOKENS = ("mask_token_id", "eos_token_id", "pad_token_id")
# Of the tokenizer of LLaDA-8B and LLaDA-1.5: the mask token, and its first seven reserved tokens,
# <|reserved_token_0|> and so on. iLLaDA has another tokenizer.
_MASK_TOKEN_ID = 126336
_RESERVED_TOKEN_IDS = tuple(range(126084, 126091))
# Either of them ties the head to the embedding.
_TIED = ("weight_tying", "tie_word_embeddings")

# The official keys with the values of LLaDA-8B.
DEFAULTS: dict[str, Any] = {
    "d_model": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": None,
    "mlp_hidden_size": 12288,
    "mlp_ratio": 4,
    "max_sequence_length": 4096,
    "vocab_size": 126464,
    "embedding_size": None,
    "mask_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "activation_type": "silu",
    "alibi": False,
    "alibi_bias_max": 8.0,
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "bias_for_layer_norm": None,
    "block_group_size": 1,
    "block_type": "llama",
    "embedding_dropout": 0.0,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": None,
    "init_cutoff_factor": None,
    "init_device": None,
    "init_fn": "mitchell",
    "init_std": 0.02,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "multi_query_attention": None,
    "precision": None,
    "residual_dropout": 0.0,
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "use_cache": False,
    "weight_tying": False,
}


def from_size(
    d_model: int,
    n_layers: int,
    n_heads: int,
    mlp_hidden_size: int,
    max_sequence_length: int,
    vocab_size: int,
    mask_token_id: int,
    eos_token_id: int,
    pad_token_id: int,
) -> dict[str, Any]:
    """Return the config.json of a network of the 8B's kind in another size."""
    return FAMILY.config_json(
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        mlp_hidden_size=mlp_hidden_size,
        max_sequence_length=max_sequence_length,
        vocab_size=vocab_size,
        embedding_size=vocab_size,
        mask_token_id=mask_token_id,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )


def _describes(values: Mapping[str, Any]) -> bool:
    # LLaDA-MoE has the same model_type.
    return values.get("model_type") == "llada" and values.get("num_experts") is None


def _problems(values: Mapping[str, Any]) -> Iterator[str]:
    lines = [
        *keys.implemented(values, _IMPLEMENTED),
        *(line for key in _TIED for line in keys.choice_of_bool(values, key)),
    ]
    for key in dict.fromkeys((*_SIZES, *_OPTIONAL_SIZES)):
        lines += keys.whole_number(values, key, optional=key in _OPTIONAL_SIZES)
    for key in _TOKENS:
        lines += keys.whole_number(values, key, 0, optional=key != "mask_token_id")
    lines += keys.positive(values, "rope_theta")
    lines += keys.positive(values, "rms_norm_eps", 1e-5)
    return iter(lines or _contradictions(values))


def _contradictions(values: Mapping[str, Any]) -> Iterator[str]:
    yield from keys.divides(values, "d_model", "n_heads", "n_kv_heads")
    rows = _rows(values)
    if values["vocab_size"] > rows:
        yield f"vocab_size: does not fit embedding_size, {rows}, got {values['vocab_size']}"
    yield from keys.tokens_fit(values, _TOKENS, rows, "embedding_size")


def _rows(values: Mapping[str, Any]) -> int:
    """Return the rows of the embedding: the vocabulary, or what it is padded to."""
    return int(values.get("embedding_size") or values["vocab_size"])


def _architecture(values: Mapping[str, Any]) -> Architecture:
    width, num_heads = values["d_model"], values["n_heads"]
    num_kv_heads = values.get("n_kv_heads")
    if num_kv_heads is None:
        num_kv_heads = 1 if values.get("multi_query_attention") else num_heads
    return Architecture(
        names=_NAMES,
        width=width,
        num_layers=values["n_layers"],
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=width // num_heads,
        mlp_size=values.get("mlp_hidden_size") or (values.get("mlp_ratio") or 4) * width,
        vocab_size=values["vocab_size"],
        num_embeddings=_rows(values),
        max_length=values["max_sequence_length"],
        norm_eps=values.get("rms_norm_eps", 1e-5),
        rope_theta=values["rope_theta"],
        rotary_dim=width // num_heads,
        mask_token_id=values["mask_token_id"],
        eos_token_id=values.get("eos_token_id"),
        decodes_in_blocks=values.get("decodes_in_blocks", False),
        pad_token_id=values.get("pad_token_id"),
        tied=any(values.get(key) for key in _TIED),
        reserved_token_ids=_reserved_token_ids(values),
    )


def _reserved_token_ids(values: Mapping[str, Any]) -> tuple[int, ...]:
    official = values["mask_token_id"] == _MASK_TOKEN_ID
    return _RESERVED_TOKEN_IDS if official else ()


FAMILY = Family(
    name="LLaDA",
    identity={"model_type": "llada", "architectures": ["LLaDAModelLM"]},
    describes=_describes,
    problems=_problems,
    architecture=_architecture,
    defaults=DEFAULTS,
    hub_code={
        "AutoConfig": "GSAI-ML/LLaDA-8B-Base--configuration_llada.LLaDAConfig",
        "AutoModel": "GSAI-ML/LLaDA-8B-Base--modeling_llada.LLaDAModelLM",
        "AutoModelForCausalLM": "GSAI-ML/LLaDA-8B-Base--modeling_llada.LLaDAModelLM",
    },
)
