"""`config.json` of a model directory as plain values, checked: which network it asks for.

Without torch and transformers: preflight refuses on the login node, with the same messages, what
loading would refuse on the nodes.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llada_sft.errors import CheckpointError

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
    "scale_logits": (False,),
    "weight_tying": (False,),
}
_SIZES = ("d_model", "n_layers", "n_heads", "mlp_hidden_size", "max_sequence_length", "vocab_size")
# May be missing, or null.
_OPTIONAL_SIZES = ("mlp_hidden_size", "n_kv_heads", "mlp_ratio", "embedding_size")
_TOKENS = ("mask_token_id", "eos_token_id", "pad_token_id")


class Sizes:
    """Sizes that follow from the official keys, which are attributes of the inheriting class."""

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int | None
    multi_query_attention: bool | None
    mlp_hidden_size: int | None
    mlp_ratio: int
    vocab_size: int
    embedding_size: int | None

    @property
    def num_kv_heads(self) -> int:
        """Key and value heads; several query heads may share one."""
        if self.n_kv_heads is not None:
            return self.n_kv_heads
        return 1 if self.multi_query_attention else self.n_heads

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def mlp_size(self) -> int:
        """Width inside the MLP."""
        return self.mlp_hidden_size or self.mlp_ratio * self.d_model

    @property
    def num_embeddings(self) -> int:
        """Rows of the embedding and of the head, padding included."""
        return self.embedding_size or self.vocab_size

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each parameter of the network, by its official name."""
        width, kv_width = self.d_model, self.num_kv_heads * self.head_dim
        of_block = {
            "attn_norm": (width,),
            "q_proj": (width, width),
            "k_proj": (kv_width, width),
            "v_proj": (kv_width, width),
            "attn_out": (width, width),
            "ff_norm": (width,),
            "ff_proj": (self.mlp_size, width),
            "up_proj": (self.mlp_size, width),
            "ff_out": (width, self.mlp_size),
        }
        shapes: dict[str, tuple[int, ...]] = {"wte": (self.num_embeddings, width)}
        for number in range(self.n_layers):
            shapes |= {f"blocks.{number}.{name}": shape for name, shape in of_block.items()}
        shapes |= {"ln_f": (width,), "ff_out": (self.num_embeddings, width)}
        return {f"model.transformer.{name}.weight": shape for name, shape in shapes.items()}


class _SizesOfFile(Sizes):
    def __init__(self, values: Mapping[str, Any]) -> None:
        for key in Sizes.__annotations__:
            setattr(self, key, values.get(key))
        self.mlp_ratio = values.get("mlp_ratio") or 4


def read_settings(model_dir: Path) -> dict[str, Any]:
    """Read `config.json` of a model directory, without running any code of it.

    Raises:
        CheckpointError: The file is missing or not JSON, or describes a network that is not LLaDA
            as it is implemented here; one line per key.
    """
    path = model_dir / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{model_dir}: no config.json; a model is a directory in Hugging Face's layout"
        )
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}; download the file again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: must be a JSON object; download the file again")
    problems = list(_problems(values)) or list(_contradictions(values))
    if problems:
        raise CheckpointError("\n".join(f"{path}: {problem}" for problem in problems))
    return values


def sizes_of(values: Mapping[str, Any]) -> Sizes:
    """Return the sizes in what `read_settings` returned."""
    return _SizesOfFile(values)


def require_eos(model_dir: Path, eos_token_id: int | None) -> None:
    """Check that a network can be trained: each example ends with EOS.

    Raises:
        CheckpointError: `config.json` names no EOS token.
    """
    if eos_token_id is None:
        raise CheckpointError(f"{model_dir}/config.json: eos_token_id: must be given, got null")


def _problems(values: dict[str, Any]) -> Iterator[str]:
    if values.get("model_type") != "llada":
        yield f"model_type: expected 'llada', got {values.get('model_type')!r}"
        return
    for key, implemented in _IMPLEMENTED.items():
        if values.get(key, implemented[0]) not in implemented:
            yield (
                f"{key}: only {json.dumps(implemented[0])} is implemented, "
                f"got {json.dumps(values[key])}"
            )
    for key in dict.fromkeys((*_SIZES, *_OPTIONAL_SIZES)):
        yield from _whole_number(key, values.get(key), 1, optional=key in _OPTIONAL_SIZES)
    for key in _TOKENS:
        yield from _whole_number(key, values.get(key), 0, optional=key != "mask_token_id")
    yield from _positive("rope_theta", values.get("rope_theta"))
    yield from _positive("rms_norm_eps", values.get("rms_norm_eps", 1e-5))


def _whole_number(key: str, value: object, least: int, optional: bool) -> Iterator[str]:
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        yield f"{key}: must be a whole number, got {json.dumps(value)}"
    elif value < least:
        yield f"{key}: must be at least {least}, got {value}"


def _positive(key: str, value: object) -> Iterator[str]:
    if not isinstance(value, int | float) or isinstance(value, bool):
        yield f"{key}: must be a number, got {json.dumps(value)}"
    # NaN fails every comparison.
    elif not 0 < value < float("inf"):
        yield f"{key}: must be a positive number, got {json.dumps(value)}"


def _contradictions(values: Mapping[str, Any]) -> Iterator[str]:
    sizes = sizes_of(values)
    if sizes.d_model % sizes.n_heads or sizes.head_dim % 2:
        yield (
            "d_model / n_heads: must be an even whole number, "
            f"got {sizes.d_model} / {sizes.n_heads}"
        )
    if sizes.n_heads % sizes.num_kv_heads:
        yield f"n_kv_heads: must divide n_heads, {sizes.n_heads}, got {sizes.num_kv_heads}"
    rows = sizes.num_embeddings
    if sizes.vocab_size > rows:
        yield f"vocab_size: does not fit embedding_size, {rows}, got {sizes.vocab_size}"
    for key in _TOKENS:
        value = values.get(key)
        if value is not None and value >= rows:
            yield f"{key}: does not fit embedding_size, {rows}, got {value}"
