"""What a sampler is asked for, checked, without torch: a command refuses settings at once.

Which sampler has which setting is in llada_sft/choices.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from types import NoneType
from typing import get_args, get_type_hints

from llada_sft.choices import OWN_SETTINGS, SAMPLERS, Remasking, Rule, Sampler, SamplerName

_COUNTS = (
    "gen_length",
    "block_length",
    "steps",
    "max_drafts",
    "minimal_topk",
    "num_to_transfer",
)
# The noise of larger temperatures, and logits of stronger guidance, are no numbers any more.
LARGEST = {"temperature": 10, "cfg_scale": 1000}


@dataclass(frozen=True)
class SamplerSettings:
    """How answers are decoded.

    `official` and `verify` give all `gen_length` tokens, those that the official code gives, unless
    `eos_early_stop` is true. All others end an answer with its first EOS, and never choose the mask
    token. None chooses one of the model's `suppress_tokens`.

    Attributes:
        sampler: One of `SAMPLERS` (llada_sft/choices.py); docs/samplers.md says what each does.
            Caches choose tokens by `factor`, `entropy_bound` or `threshold`, the first of them that
            is given, else in a fixed number of steps. `llada2` and `llada21` count
            blocks from the start of the prompt.
        steps: Forward passes in all, an equal share for each block; None: `gen_length`. Of
            `official`, `verify`, and caches without another choice. `dual_cache` makes at most so
            many passes in any case, and then may leave mask tokens, as its official code does. Of
            `llada2`: passes for each block, as in its official code; None: `block_length`.
        gen_length: Tokens of an answer, at most.
        block_length: Tokens of a block; `gen_length` is a multiple of it, but in `llada2` and
            `llada21`, where it must be that of the training.
        threshold: Tokens of at least this probability are chosen; None: 0.9 for `threshold`. Of
            `llada2` and `llada21` those above it; None: 0.95.
        factor: The k most probable tokens are chosen while each has at least the probability
            1 - factor / (k + 1); None: 1 for `factor`.
        entropy_bound: The largest set is chosen whose entropies, without the largest one, sum up to
            this at most, in nats; None: 0.1 for `entropy`.
        temperature: Of the Gumbel noise; 0 takes the most likely token.
        cfg_scale: Strength of unsupervised classifier-free guidance; 0 is none, and half the work.
        remasking: Keep the most confident predictions, or random ones; the latter only in a fixed
            number of steps.
        eos_early_stop: Whether an answer ends at its first EOS; None: unless the sampler is
            `official` or `verify`. Of `llada2` and `llada21`: whether it ends within a block, or
            for `llada21` before all blocks are decoded; nothing after the EOS is returned.
        eos_token_id: None: the model's.
        mask_token_id: None: the model's.
        logits_eos_inf: EOS is never written, and the others have its probability, as with this
            option of the official code.
        confidence_eos_eot_inf: EOS and the end of a turn are written last: they have the confidence
            0, and the others their probability among all but these two, as with this option of the
            official code (which at a temperature does it for the end of a turn alone).
        eot_token_id: The end of a turn, for `confidence_eos_eot_inf`; None: the model has none.
        start_length: Tokens of the canvas at first; it grows by one block at a time, up to
            `gen_length`, while no EOS is probable in its last block. None: `gen_length`.
        growth_threshold: The probability of EOS at which a canvas no longer grows.
        max_drafts: Rows that `verify` computes for an answer in one pass, at most: its state and
            guesses of the next ones. More of them save passes, and cost rows that prove wrong.
        seed: Of all random draws; None: they follow torch's global generator.
        minimal_topk: Of `llada2`: at most `gen_length` // this steps for each block; None: 1.
        eos_in_prompt_ends: Of `llada2`: an EOS in the prompt makes the answer empty as soon as one
            is written, with `eos_early_stop`. The released code does so; by default it does not.
        editing_threshold: Of `llada21`: a written token of the block is replaced where another one
            has a probability above this; None: 0.9.
        max_post_steps: Of `llada21`: passes over a block without mask tokens, at most; None: 16.
        num_to_transfer: Of `llada21`: mask tokens that each step replaces, at least; None: 1.
        cache_blocks: Of `llada2` and `llada21`: keys and values of finished blocks are kept. With
            attention in blocks that is exact: tokens and passes are the same. None: true.

    Raises:
        ValueError: A value is out of its range, or does not fit another one.
    """

    sampler: SamplerName = "official"
    steps: int | None = None
    gen_length: int = 128
    block_length: int = 32
    threshold: float | None = None
    factor: float | None = None
    entropy_bound: float | None = None
    temperature: float = 0.0
    cfg_scale: float = 0.0
    remasking: Remasking = "low_confidence"
    eos_early_stop: bool | None = None
    eos_token_id: int | None = None
    mask_token_id: int | None = None
    logits_eos_inf: bool = False
    confidence_eos_eot_inf: bool = False
    eot_token_id: int | None = None
    start_length: int | None = None
    growth_threshold: float = 0.5
    max_drafts: int = 3
    seed: int | None = None
    minimal_topk: int | None = None
    eos_in_prompt_ends: bool | None = None
    editing_threshold: float | None = None
    max_post_steps: int | None = None
    num_to_transfer: int | None = None
    cache_blocks: bool | None = None

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise ValueError(problem)

    @property
    def traits(self) -> Sampler:
        """What the sampler is."""
        return SAMPLERS[self.sampler]

    @property
    def exact(self) -> bool:
        """Whether the tokens are those of the official code, all of them."""
        return self.traits.official and not self.eos_early_stop

    @property
    def stops_at_eos(self) -> bool:
        """Whether an answer ends with its first EOS."""
        return self.in_blocks or self.stops_early

    @property
    def stops_early(self) -> bool:
        """Whether nothing after the first EOS is decoded."""
        return not self.exact and self.eos_early_stop is not False

    @property
    def needs_eos(self) -> bool:
        """Whether nothing is decoded where no token ends an answer."""
        stops = self.stops_at_eos and bool(self.eos_early_stop or self.start_length)
        return stops or self.logits_eos_inf or self.confidence_eos_eot_inf

    def lacks_eos(self, eos_token_id: int | None) -> bool:
        """Return whether an EOS token is needed, and neither these settings nor a model name one.

        Args:
            eos_token_id: What the model names.
        """
        return self.needs_eos and self.eos_token_id is None and eos_token_id is None

    @property
    def in_blocks(self) -> bool:
        """Whether the network attends in blocks, counted from the start of the prompt."""
        return self.traits.in_blocks

    def mismatch(self, decodes_in_blocks: bool) -> str | None:
        """Return why the sampler is not for a network; None: it is.

        Args:
            decodes_in_blocks: Whether the network attends in blocks; otherwise all positions see
                each other.
        """
        if self.in_blocks == decodes_in_blocks:
            return None
        fitting = [name for name, it in SAMPLERS.items() if it.in_blocks == decodes_in_blocks]
        how = "attends in blocks"
        if not decodes_in_blocks:
            how = "has full attention (no decodes_in_blocks in its config.json)"
        names = ", ".join(fitting)
        return f"sampler must be one of {names}, got {self.sampler!r}: this network {how}"

    @property
    def choice(self) -> Rule:
        """What tokens are chosen by, and its number."""
        for name, rule in self.traits.rules.items():
            if (number := getattr(self, name)) is not None:
                return rule, number
        return self.traits.default

    @property
    def num_blocks(self) -> int:
        """Blocks of a whole answer."""
        return self.gen_length // self.block_length

    @property
    def steps_per_block(self) -> int:
        """Forward passes for each block."""
        if self.in_blocks:
            most = self.gen_length // (self.minimal_topk or 1)
            return min(self.block_length if self.steps is None else self.steps, most)
        return (self.gen_length if self.steps is None else self.steps) // self.num_blocks

    def _problems(self) -> Iterator[str]:
        """Give what is wrong, the first thing first."""
        if self.sampler not in SAMPLERS:
            yield f"sampler must be one of {', '.join(SAMPLERS)}, got {self.sampler!r}"
        yield from self._problems_of_types()
        yield from self._problems_of_ranges()
        for name in self.traits.lacks:
            if getattr(self, name) != getattr(type(self), name):
                yield f"{name} is not a setting of the sampler {self.sampler!r}; remove it"
        yield from self._problems_in_blocks() if self.in_blocks else self._problems_of_lengths()
        yield from self._problems_of_choice()
        own = {*self.traits.rules, *self.traits.own_settings}
        for name in sorted(OWN_SETTINGS - own):
            if getattr(self, name) is not None:
                yield f"{name} is not a setting of the sampler {self.sampler!r}; remove it"

    def _problems_of_types(self) -> Iterator[str]:
        for name, kind in get_type_hints(type(self)).items():
            kinds, value = get_args(kind) or (kind,), getattr(self, name)
            if value is None and NoneType in kinds:
                continue
            is_bool = isinstance(value, bool)
            if name in _COUNTS:
                if is_bool or not isinstance(value, Integral) or value < 1:
                    yield f"{name} must be a whole number above 0, got {value!r}"
            elif int in kinds and (is_bool or not isinstance(value, Integral)):
                yield f"{name} must be a whole number, got {value!r}"
            elif float in kinds and (is_bool or not isinstance(value, Real)):
                yield f"{name} must be a number, got {value!r}"
            elif bool in kinds and not is_bool:
                yield f"{name} must be true or false, got {value!r}"

    def _problems_of_ranges(self) -> Iterator[str]:
        posts = self.max_post_steps
        if posts is not None and posts < 0:
            yield f"max_post_steps must be a whole number from 0 on, got {posts!r}"
        for name in ("factor", "entropy_bound"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                yield f"{name} must be at least 0, got {value}"
        for name, most in LARGEST.items():
            if not 0 <= getattr(self, name) <= most:
                yield f"{name} must be from 0 to {most}, got {getattr(self, name)}"
        for name in ("threshold", "growth_threshold", "editing_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                yield f"{name} must be from 0 to 1, got {value}"

    def _problems_in_blocks(self) -> Iterator[str]:
        if (self.minimal_topk or 1) > self.gen_length:
            numbers = f"{self.gen_length}, got {self.minimal_topk}"
            yield f"minimal_topk must be at most gen_length, {numbers}"

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
        if start is not None and self.logits_eos_inf:
            yield "start_length must not be given with logits_eos_inf: no EOS is probable then"

    def _problems_of_choice(self) -> Iterator[str]:
        if self.remasking not in ("low_confidence", "random"):
            yield f"remasking must be 'low_confidence' or 'random', got {self.remasking!r}"
        if self.remasking == "random" and (self.choice[0] != "fixed" or self.sampler == "verify"):
            by = "verify" if self.sampler == "verify" else self.choice[0]
            yield f"remasking must be 'low_confidence' where tokens are chosen by {by}"
        if self.confidence_eos_eot_inf and (
            self.remasking == "random" or self.choice[0] == "entropy"
        ):
            yield "confidence_eos_eot_inf is for tokens that are chosen by their confidence"
        if self.traits.greedy and self.temperature:
            given = f"{self.sampler!r}, got {self.temperature}"
            yield f"temperature must be 0 with the sampler {given}"
