"""The section `objective`: which loss is trained, and what it is estimated from."""

from typing import Annotated, Any, Literal

from pydantic import Field, create_model, model_validator

from llada_sft.choices import Masking
from llada_sft.config.sections.data import DataConfig
from llada_sft.config.values import Fraction, NonNegativeFloat, Section

DEFAULT_BLOCK_LENGTH = 32

# `from` is a word of Python: no attribute of a class can be written so.
_ABOUT = (
    "random: replaced by tokens of the vocabulary; model: by what the network predicts there, in"
    " one more forward pass of each micro-batch."
)
_SOURCE: dict[str, Any] = {
    "from": (Literal["random", "model"], Field("random", description=_ABOUT))
}
_WithSource: Any = create_model("_WithSource", __base__=Section, **_SOURCE)


class EditConfig(_WithSource):
    """Keys of `objective.edit`; `from` is `source` here.

    The authors of LLaDA2.1 have not published their rates: share and weight are the user's.
    """

    # Of the answer tokens of a noisy block that are not masked, this share is replaced; 0 = none.
    # The target is the original token.
    share: Fraction = 0.0
    # What the loss of a replaced token is multiplied by; a token of the answer has 1.
    weight: NonNegativeFloat = 1.0

    @property
    def source(self) -> Literal["random", "model"]:
        """The key `from`."""
        found: Literal["random", "model"] = getattr(self, "from")
        return found


class ObjectiveConfig(Section):
    # full: all tokens of an example see each other (LLaDA's objective). block: a token sees its own
    # block and all blocks before it, and only its own block is noisy (block diffusion, LLaDA2.x);
    # a row of the data is two in the network, noisy and clean (docs/recipes.md).
    kind: Literal["full", "block"] = "full"
    # With kind: block: tokens of a block, counted from the start of an example, prompt included.
    # Examples are filled up to whole blocks by what data.end puts after answers.
    block_length: Annotated[int, Field(ge=1, le=4096)] = DEFAULT_BLOCK_LENGTH
    # With kind: block: [lo, hi] = dFactory's recipe for LLaDA2.0, which is a biased estimate of the
    # bound: each token of an answer is masked with one probability for all of it, uniform in
    # [lo, hi), and all masked ones count the same, without 1/t. null = the bound: in each block of
    # n answer tokens l ~ U{1..n} are masked, with the weight n/l.
    band: tuple[Fraction, Fraction] | None = None
    # With kind: block: answer tokens that are not masked, but wrong (LLaDA2.1 edits what it wrote).
    edit: EditConfig = EditConfig.model_construct()
    # Train with all tokens seeing each other a network that decodes in blocks.
    allow_mismatch: bool = False
    # exact: l ~ U{1..L} response tokens masked, weight L/l (eq. 14 of the paper);
    # bernoulli: each token with probability p, weight 1/p (the official SFT code).
    masking: Masking = "exact"
    # low_discrepancy: t spread evenly over the global batch; independent: one draw per sequence.
    t_sampling: Literal["low_discrepancy", "independent"] = "low_discrepancy"
    # antithetic: each example twice in its micro-batch, with l tokens masked and with the last
    # L + 1 - l of the same permutation (bernoulli: with t and 1 - t); its loss is the mean. It
    # counts one example, and two rows of train.micro_batch_size (or of data.max_tokens).
    pairs: Literal["none", "antithetic"] = "none"
    # importance: levels with a larger loss are drawn more often, and count less in proportion;
    # what is drawn how often is fitted to the losses while training (docs/recipes.md).
    t_density: Literal["uniform", "importance"] = "uniform"
    # The weight of a second loss, which makes right predictions more certain, so that a sampler may
    # write more tokens at once: the mean entropy at masked positions that are predicted right. With
    # it the objective is no longer a bound of the likelihood. 0 = none.
    confidence_weight: NonNegativeFloat = 0.0
    # With data.end: void: the weight of the void tokens' loss, next to that of the answer.
    void_weight: NonNegativeFloat = 1.0
    # answer: each answer counts 1/length; token: each response token counts the same.
    normalization: Literal["answer", "token"] = "answer"
    # p = (1 - eps) t + eps, for bernoulli.
    eps: Annotated[float, Field(gt=0, lt=1)] = 1e-3

    @property
    def draws(self) -> int:
        """How many masks are drawn of each example: rows of a micro-batch that it fills."""
        return 2 if self.pairs == "antithetic" else 1

    @property
    def block_tokens(self) -> int:
        """Tokens of a block; 0: there are no blocks."""
        return self.block_length if self.kind == "block" else 0

    @property
    def halves(self) -> int:
        """How many positions the network runs on for each token of a row."""
        return 2 if self.kind == "block" else 1

    @model_validator(mode="after")
    def _keys_of_blocks(self) -> "ObjectiveConfig":
        for name in _OF_BLOCKS if self.kind == "full" else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: is for kind: block, got full; set that, or remove it")
        return self

    @model_validator(mode="after")
    def _band_is_one(self) -> "ObjectiveConfig":
        if self.band is None:
            return self
        low, high = self.band
        if not low < high:
            raise ValueError(f"band: must be [lo, hi] with lo < hi, got [{low:g}, {high:g}]")
        if self.masking == "bernoulli":
            raise ValueError("masking: bernoulli has its own chances; remove it, or band")
        if self.t_density == "importance":
            raise ValueError("t_density: importance is for levels of the bound; remove it, or band")
        return self


_OF_BLOCKS = ("block_length", "band", "edit")


def require_possible(objective: ObjectiveConfig, data: DataConfig) -> None:
    """Check that an objective can be trained with data.

    Raises:
        ValueError: It cannot; the text says what to do.
    """
    default = type(objective).model_fields["void_weight"].default
    if objective.void_weight != default and data.end != "void":
        raise ValueError("objective.void_weight is for data.end: void; remove it, or set that")
    length = objective.block_tokens
    if length and data.max_length % length:
        whole = max(data.max_length // length, 1) * length
        raise ValueError(
            "data.max_length: must be a multiple of objective.block_length,"
            f" {length}, got {data.max_length}; take {whole}"
        )
    if objective.band is not None and data.end == "void":
        raise ValueError("objective.band: data.end: void masks an EOS always; set another end")
