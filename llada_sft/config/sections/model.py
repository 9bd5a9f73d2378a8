"""The sections `model` and `lora`: the network, and what of it is trained."""

from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from llada_sft.config.values import (
    LocalPath,
    NonEmptyStr,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)


class ModelSize(Section):
    """The size of a network with `model.init: random`."""

    # Width of the residual stream.
    d_model: PositiveInt
    # Blocks.
    n_layers: PositiveInt
    # Heads of attention; d_model / n_heads is even.
    n_heads: PositiveInt
    # Width inside the MLP.
    mlp_hidden_size: PositiveInt
    # Most tokens of an example.
    max_sequence_length: PositiveInt = 4096

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "ModelSize":
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise ValueError(
                "d_model / n_heads must be an even whole number, "
                f"got {self.d_model} / {self.n_heads}"
            )
        return self


def _by_name(checkpointing: object) -> object:
    """Return the name of what was once true or false."""
    if isinstance(checkpointing, bool):
        return "full" if checkpointing else "none"
    return checkpointing


class ModelConfig(Section):
    # A directory with config.json, *.safetensors and the tokenizer; with `init: random` only the
    # tokenizer is read from it.
    path: LocalPath
    # random: weights are drawn, for a network of model.size.
    init: Literal["pretrained", "random"] = "pretrained"
    # With init: random; the vocabulary is the tokenizer's.
    size: ModelSize | None = None
    # Text or id of the mask token, where neither config.json (mask_token_id) nor the tokenizer
    # (mask_token) names it; LLaDA2's config.json does not.
    mask_token: NonEmptyStr | NonNegativeInt | None = None
    # What the backward pass computes again instead of keeping it: full = each block, for a third
    # more arithmetic; selective = only norms, rotations and SwiGLU's product; none = nothing;
    # offload = as full, and the inputs of blocks wait in the CPU's memory (docs/performance.md).
    # auto = what activation_gb has room for, block by block. true and false mean full and none.
    activation_checkpointing: Annotated[
        Literal["none", "selective", "full", "offload", "auto"], BeforeValidator(_by_name)
    ] = "full"
    # With auto: GB (10^9 bytes) of a rank's memory for what the blocks keep of a micro-batch.
    activation_gb: PositiveFloat | None = None
    # Compile what is before and after attention in each block: its elementwise operations are fused
    # (docs/performance.md). auto = on CUDA, where Triton is there.
    compile: Literal["auto", "on", "off"] = "auto"
    # What computes attention in packed rows on CUDA in bf16: torch's kernel for variable lengths,
    # or that of the package flash-attn. auto = flash_attn where it is installed.
    attention_kernel: Literal["auto", "torch", "flash_attn"] = "auto"
    # What computes RMSNorms: torch, or Liger's Triton kernel (CUDA, docs/performance.md). auto =
    # liger on CUDA where liger-kernel is installed and blocks are not compiled.
    norm_kernel: Literal["auto", "torch", "liger"] = "auto"
    # And the product inside SwiGLU's MLPs; not inside experts.
    swiglu_kernel: Literal["auto", "torch", "liger"] = "auto"
    # And rotary positions.
    rope_kernel: Literal["auto", "torch", "liger"] = "auto"
    # And the cross-entropy of the head; auto = liger on CUDA where liger-kernel is installed. With
    # a confidence loss it is torch.
    loss_kernel: Literal["auto", "torch", "liger"] = "auto"
    # For networks with experts: the weight of the loss that keeps their load even
    # (docs/families.md); null = router_aux_loss_coef of the model's config.json; LLaDA2 has none.
    router_balance_weight: NonNegativeFloat | None = None
    # And of the mean of (log Σ exp)² of the router's logits, which keeps these small.
    router_z_weight: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _size_goes_with_random(self) -> "ModelConfig":
        if self.init == "random" and self.size is None:
            raise ValueError("init: random needs model.size")
        if self.init == "pretrained" and self.size is not None:
            raise ValueError("size is read from the checkpoint; remove it, or set init: random")
        return self

    @property
    def liger_in_blocks(self) -> tuple[str, ...]:
        """The keys that ask by name for Liger's kernels inside blocks."""
        keys = ("norm_kernel", "swiglu_kernel", "rope_kernel")
        return tuple(key for key in keys if getattr(self, key) == "liger")

    @model_validator(mode="after")
    def _compiled_blocks_have_no_kernels_inside(self) -> "ModelConfig":
        if self.compile == "on" and self.liger_in_blocks:
            raise ValueError(
                f"{self.liger_in_blocks[0]}: liger needs compile: off or auto, got on: compiled"
                " blocks fuse it themselves; set compile: auto, or this to torch"
            )
        return self

    @model_validator(mode="after")
    def _budget_goes_with_auto(self) -> "ModelConfig":
        automatic = self.activation_checkpointing == "auto"
        if automatic and self.activation_gb is None:
            raise ValueError("activation_checkpointing: auto needs model.activation_gb")
        if not automatic and self.activation_gb is not None:
            raise ValueError("activation_gb needs model.activation_checkpointing: auto")
        return self


class LoraConfig(Section):
    """LoRA (docs/lora.md): the network is frozen, and small matrices next to its own are trained.

    Source: Hu et al. (arXiv 2106.09685); rsLoRA arXiv 2312.03732; DoRA arXiv 2402.09353.
    """

    # Next to a matrix W: W + scale · B · A, with `rank` columns of B and rows of A.
    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    # scale = alpha / rank; with rslora alpha / √rank.
    alpha: PositiveInt = 32
    # Ends of the names of matrices in blocks: [q_proj, v_proj]; null = all of attention and of the
    # MLPs, by the names that the family gives them. A router only if it is named.
    targets: Annotated[tuple[NonEmptyStr, ...], Field(min_length=1)] | None = None
    # It stays 0: a mask from torch's generator would be another one after a resume.
    dropout: float = 0.0
    # Divide by √rank instead of rank.
    rslora: bool = False
    # Length and direction of each row are trained apart: a magnitude for each row, and LoRA.
    dora: bool = False
    # How the frozen network is kept: as it is, in train.precision; or its adapted matrices in 4
    # bits (NF4, by bitsandbytes), at deepspeed.stage 1 or 2.
    base: Literal["full", "nf4"] = "full"

    @field_validator("dropout")
    @classmethod
    def _no_dropout(cls, dropout: float) -> float:
        if dropout:
            raise ValueError(
                f"must be 0, got {dropout:g}: the mask would be another one after a resume and on"
                " another number of ranks; use fewer epochs or weight_decay against overfitting"
            )
        return dropout
