"""`config.json` of LLaDA, by its official keys.

Every key of an official file is kept, also those that the network has no use for, so that what we
save is what the official code expects to read. Values that would ask for another network (ALiBi,
biases, tied weights, ...) are refused: ignoring them would compute something else in silence.
"""

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from transformers import PretrainedConfig, __version__

from llada_sft.model.settings import Sizes, read_settings

HUB_AUTO_MAP = {
    "AutoConfig": "GSAI-ML/LLaDA-8B-Base--configuration_llada.LLaDAConfig",
    "AutoModel": "GSAI-ML/LLaDA-8B-Base--modeling_llada.LLaDAModelLM",
    "AutoModelForCausalLM": "GSAI-ML/LLaDA-8B-Base--modeling_llada.LLaDAModelLM",
}


class LLaDAConfig(PretrainedConfig, Sizes):  # type: ignore[misc]
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
    def hidden_size(self) -> int:
        """Width of the residual stream, by the name that other libraries ask for."""
        return self.d_model

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
    config: LLaDAConfig = LLaDAConfig.from_dict(read_settings(model_dir))
    return config
