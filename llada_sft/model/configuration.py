"""`config.json` of LLaDA, by its official keys.

Every key of an official file is kept, also those that the network has no use for, so that what we
save is what the official code expects to read. Values that would ask for another network (ALiBi,
biases, tied weights, ...) are refused: ignoring them would compute something else in silence.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from transformers import PretrainedConfig, __version__

from llada_sft.errors import CheckpointError

HUB_AUTO_MAP = {
    "AutoConfig": "GSAI-ML/LLaDA-8B-Base--configuration_llada.LLaDAConfig",
    "AutoModel": "GSAI-ML/LLaDA-8B-Base--modeling_llada.LLaDAModelLM",
    "AutoModelForCausalLM": "GSAI-ML/LLaDA-8B-Base--modeling_llada.LLaDAModelLM",
}

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


class LLaDAConfig(PretrainedConfig):  # type: ignore[misc]
    """The official keys; the defaults are LLaDA-8B's.

    `embedding_size` is the vocabulary padded to a round number (None: `vocab_size`): the rows of
    the embedding and of the head.
    """

    model_type: ClassVar[str] = "llada"

    d_model: int = 4096
    n_layers: int = 32
    n_heads: int = 32
    n_kv_heads: int | None = None
    mlp_hidden_size: int | None = 12288
    mlp_ratio: int = 4
    max_sequence_length: int = 4096
    vocab_size: int = 126464
    embedding_size: int | None = None
    mask_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    activation_type: str = "silu"
    alibi: bool = False
    alibi_bias_max: float = 8.0
    attention_dropout: float = 0.0
    attention_layer_norm: bool = False
    attention_layer_norm_with_affine: bool = True
    auto_map: dict[str, str] | None = None
    bias_for_layer_norm: bool | None = None
    block_group_size: int = 1
    block_type: str = "llama"
    embedding_dropout: float = 0.0
    flash_attention: bool = False
    include_bias: bool = False
    include_qkv_bias: bool | None = None
    init_cutoff_factor: float | None = None
    init_device: str | None = None
    init_fn: str = "mitchell"
    init_std: float = 0.02
    input_emb_norm: bool = False
    layer_norm_type: str = "rms"
    layer_norm_with_affine: bool = True
    multi_query_attention: bool | None = None
    precision: str | None = None
    residual_dropout: float = 0.0
    rms_norm_eps: float = 1e-5
    rope: bool = True
    rope_full_precision: bool = True
    rope_theta: float = 500000.0
    scale_logits: bool = False
    use_cache: bool = False
    weight_tying: bool = False

    @classmethod
    def from_size(
        cls,
        d_model: int,
        n_layers: int,
        n_heads: int,
        mlp_hidden_size: int,
        max_sequence_length: int,
        vocab_size: int,
        mask_token_id: int,
        eos_token_id: int,
        pad_token_id: int,
    ) -> Self:
        """Describe a network of the 8B's kind in another size, for random weights."""
        return cls(
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
    def hidden_size(self) -> int:
        """Width of the residual stream, by the name that other libraries ask for."""
        return self.d_model

    @property
    def mlp_size(self) -> int:
        """Width inside the MLP."""
        return self.mlp_hidden_size or self.mlp_ratio * self.d_model

    @property
    def num_embeddings(self) -> int:
        """Rows of the embedding and of the head, padding included."""
        return self.embedding_size or self.vocab_size

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the whole file under its official keys: transformers saves what this returns."""
        known = {key: getattr(self, key) for key in LLaDAConfig.__annotations__}
        further = {key: value for key, value in super().to_diff_dict().items() if key != "dtype"}
        official = {
            "model_type": self.model_type,
            "architectures": ["LLaDAModelLM"],
            "auto_map": self.auto_map or HUB_AUTO_MAP,
            "torch_dtype": str(self.dtype or torch.float32).removeprefix("torch."),
            "transformers_version": __version__,
        }
        return further | known | official


def read_config(model_dir: Path) -> LLaDAConfig:
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
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}; download the file again") from None
    if problems := list(_problems(values)):
        raise CheckpointError("\n".join(f"{path}: {problem}" for problem in problems))
    config: LLaDAConfig = LLaDAConfig.from_dict(values)
    if problems := list(_contradictions(config)):
        raise CheckpointError("\n".join(f"{path}: {problem}" for problem in problems))
    return config


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
    for key in (*_SIZES, "mask_token_id"):
        value = values.get(key)
        if not (key == "mlp_hidden_size" and value is None) and not isinstance(value, int):
            yield f"{key}: must be a whole number, got {json.dumps(value)}"
    if not isinstance(values.get("rope_theta"), int | float):
        yield f"rope_theta: must be a number, got {json.dumps(values.get('rope_theta'))}"


def _contradictions(config: LLaDAConfig) -> Iterator[str]:
    if config.d_model % config.n_heads or config.head_dim % 2:
        yield (
            "d_model / n_heads: must be an even whole number, "
            f"got {config.d_model} / {config.n_heads}"
        )
    if config.n_heads % config.num_kv_heads:
        yield f"n_kv_heads: must divide n_heads, {config.n_heads}, got {config.num_kv_heads}"
    for key in ("vocab_size", "mask_token_id"):
        value, rows = getattr(config, key), config.num_embeddings
        if value > rows or (value == rows and key == "mask_token_id"):
            yield f"{key}: does not fit embedding_size, {rows}, got {value}"
