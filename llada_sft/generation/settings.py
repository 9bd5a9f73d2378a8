"""What a sampler is asked for, checked, without torch: a command refuses settings at once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

Sampler = Literal[
    "official", "threshold", "factor", "entropy", "prefix_cache", "dual_cache", "verify"
]
# What tokens are chosen by, and its number.
Choice = tuple[Literal["fixed", "threshold", "factor", "entropy"], float]
SAMPLERS: tuple[str, ...] = get_args(Sampler)
# Settings of the samplers of block-diffusion networks.
_OF_BLOCK_DIFFUSION = ("editing_threshold", "max_post_steps", "num_to_transfer", "minimal_topk")
# What a sampler chooses tokens by, where the settings do not say it.
_DEFAULTS = {"threshold": 0.9, "factor": 1.0, "entropy": 0.1}
_CACHED = ("prefix_cache", "dual_cache")


@dataclass(frozen=True)
class SamplerSettings:
    """How answers are decoded.

    `official` and `verify` give all `gen_length` tokens, those that the official code gives, unless
    `eos_early_stop` is true. All others end an answer with its first EOS, and never choose the mask
    token or one of the model's `suppress_tokens`.

    Attributes:
        sampler: official: the most confident tokens of each step, in a fixed number of steps.
            threshold, factor, entropy: in each step all tokens that are certain enough.
            prefix_cache, dual_cache: keys and values are computed once for each block, those before
            the block or all outside of it; tokens are chosen by `factor`, `threshold` or
            `entropy_bound`, whichever is given, in this order, else in a fixed number of steps.
            verify: the tokens of `official`, from several of its steps in one forward pass.
        steps: Forward passes in all, an equal share for each block; None: `gen_length`. Of
            `official`, `verify`, and caches without another choice. `dual_cache` makes at most so
            many passes in any case, and then may leave mask tokens, as its official code does.
        gen_length: Tokens of an answer, at most.
        block_length: Tokens of a block; `gen_length` is a multiple of it.
        threshold: Tokens of at least this probability are chosen; None: 0.9 for `threshold`.
        factor: The k most probable tokens are chosen while each has at least the probability
            1 - factor / (k + 1); None: 1 for `factor`.
        entropy_bound: The largest set is chosen whose entropies, without the largest one, sum up to
            this at most, in nats; None: 0.1 for `entropy`.
        temperature: Of the Gumbel noise; 0 takes the most likely token.
        cfg_scale: Strength of unsupervised classifier-free guidance; 0 is none, and half the work.
        remasking: Keep the most confident predictions, or random ones; the latter only in a fixed
            number of steps.
        eos_early_stop: Whether an answer ends at its first EOS; None: unless the sampler is
            `official` or `verify`.
        eos_token_id: None: the model's.
        mask_token_id: None: the model's.
        start_length: Tokens of the canvas at first; it grows by one block at a time, up to
            `gen_length`, while no EOS is probable in its last block. None: `gen_length`.
        growth_threshold: The probability of EOS at which a canvas no longer grows.
        max_drafts: Rows that `verify` computes for an answer in one pass, at most: its state and
            guesses of the next ones. More of them save passes, and cost rows that prove wrong.
        seed: Of all random draws; None: they follow torch's global generator.
        editing_threshold, max_post_steps, num_to_transfer, minimal_topk: Of the samplers of
            block-diffusion networks (LLaDA2), none of which is here yet: None.

    Raises:
        ValueError: A value is out of its range, or does not fit another one.
    """

    sampler: Sampler = "official"
    steps: int | None = None
    gen_length: int = 128
    block_length: int = 32
    threshold: float | None = None
    factor: float | None = None
    entropy_bound: float | None = None
    temperature: float = 0.0
    cfg_scale: float = 0.0
    remasking: Literal["low_confidence", "random"] = "low_confidence"
    eos_early_stop: bool | None = None
    eos_token_id: int | None = None
    mask_token_id: int | None = None
    start_length: int | None = None
    growth_threshold: float = 0.5
    max_drafts: int = 3
    seed: int | None = None
    editing_threshold: float | None = None
    max_post_steps: int | None = None
    num_to_transfer: int | None = None
    minimal_topk: int | None = None

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise ValueError(problem)

    @property
    def exact(self) -> bool:
        """Whether the tokens are those of the official code, all of them."""
        return self.sampler in ("official", "verify") and not self.eos_early_stop

    @property
    def stops_at_eos(self) -> bool:
        """Whether an answer ends with its first EOS."""
        return not self.exact and self.eos_early_stop is not False

    @property
    def caches(self) -> Literal["none", "prefix", "dual"]:
        """Which keys and values are computed once for each block."""
        if self.sampler == "prefix_cache":
            return "prefix"
        return "dual" if self.sampler == "dual_cache" else "none"

    @property
    def choice(self) -> Choice:
        """What tokens are chosen by, and its number; a factor is preferred to a threshold."""
        if self.sampler in ("official", "verify"):
            return "fixed", 0.0
        if self.factor is not None or self.sampler == "factor":
            return "factor", _DEFAULTS["factor"] if self.factor is None else self.factor
        if self.entropy_bound is not None or self.sampler == "entropy":
            bound = self.entropy_bound
            return "entropy", _DEFAULTS["entropy"] if bound is None else bound
        if self.threshold is not None or self.sampler == "threshold":
            threshold = self.threshold
            return "threshold", _DEFAULTS["threshold"] if threshold is None else threshold
        return "fixed", 0.0

    @property
    def num_blocks(self) -> int:
        """Blocks of a whole answer."""
        return self.gen_length // self.block_length

    @property
    def steps_per_block(self) -> int:
        """Forward passes for each block."""
        return (self.gen_length if self.steps is None else self.steps) // self.num_blocks

    def _problems(self) -> Iterator[str]:
        """Give what is wrong, the first thing first."""
        if self.sampler not in SAMPLERS:
            yield f"sampler must be one of {', '.join(SAMPLERS)}, got {self.sampler!r}"
        for name in ("gen_length", "block_length", "steps", "max_drafts"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                yield f"{name} must be a whole number above 0, got {value!r}"
        yield from self._problems_of_lengths()
        yield from self._problems_of_choice()
        for name in _OF_BLOCK_DIFFUSION:
            if getattr(self, name) is not None:
                yield f"{name} is not a setting of the sampler {self.sampler!r}; remove it"

    def _problems_of_lengths(self) -> Iterator[str]:
        if self.gen_length % self.block_length:
            lengths = f"{self.gen_length} and {self.block_length}"
            yield f"gen_length must be a multiple of block_length, got {lengths}"
        if self.steps is not None and self.steps % self.num_blocks:
            numbers = f"{self.steps} and {self.num_blocks}"
            yield f"steps must be a multiple of the number of blocks, got {numbers}"
        start = self.start_length
        if start is not None and (start % self.block_length or not 0 < start <= self.gen_length):
            lengths = f"block_length, {self.block_length}, up to gen_length, {self.gen_length}"
            yield f"start_length must be a multiple of {lengths}, got {start}"
        if start is not None and not self.stops_at_eos:
            yield f"start_length needs eos_early_stop with the sampler {self.sampler!r}"

    def _problems_of_choice(self) -> Iterator[str]:
        if self.remasking not in ("low_confidence", "random"):
            yield f"remasking must be 'low_confidence' or 'random', got {self.remasking!r}"
        if self.remasking == "random" and (self.choice[0] != "fixed" or self.sampler == "verify"):
            by = "verify" if self.sampler == "verify" else self.choice[0]
            yield f"remasking must be 'low_confidence' where tokens are chosen by {by}"
        for name in ("temperature", "cfg_scale", "factor", "entropy_bound"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                yield f"{name} must be at least 0, got {value}"
        for name in ("threshold", "growth_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                yield f"{name} must be from 0 to 1, got {value}"
        if self.sampler == "verify" and self.temperature:
            yield f"temperature must be 0 with the sampler 'verify', got {self.temperature}"
        if self.sampler not in ("threshold", *_CACHED) and self.threshold is not None:
            yield f"threshold is not a setting of the sampler {self.sampler!r}; remove it"
        if self.sampler not in ("threshold", "factor", *_CACHED) and self.factor is not None:
            yield f"factor is not a setting of the sampler {self.sampler!r}; remove it"
        if self.sampler not in ("entropy", *_CACHED) and self.entropy_bound is not None:
            yield f"entropy_bound is not a setting of the sampler {self.sampler!r}; remove it"
