"""What a user chooses by name, and the rooms that obey it: the words, and what each sampler is.

On the ground floor, without torch: the config and the command line check the names, and the
mathematics goes by them. A sampler is added here and in `generation/` (docs/add-sampler.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Masking = Literal["exact", "bernoulli"]
Remasking = Literal["low_confidence", "random"]
SamplerName = Literal[
    "official",
    "threshold",
    "factor",
    "entropy",
    "prefix_cache",
    "dual_cache",
    "verify",
    "llada2",
    "llada21",
]
# How many of the best tokens a step writes (generation/selection.py), and the rule's number.
RuleName = Literal["fixed", "threshold", "factor", "entropy", "above"]
Rule = tuple[RuleName, float]


@dataclass(frozen=True)
class Sampler:
    """What of a sampler its settings, the commands and the networks depend on.

    Attributes:
        default: The rule, where no setting says it.
        rules: Settings that say it, with the name of the rule; the first one that is given counts.
        own_settings: Other settings that only some samplers have.
        lacks: Settings that most samplers have, and this one does not.
        official: Whether all tokens are those of the official code, `gen_length` of them.
        greedy: Whether it takes the most likely token always: the temperature is 0.
        in_blocks: Whether it is for networks that attend in blocks, counted from the start of the
            prompt; the others are for full attention.
        cache: Which keys and values are computed once for each block: of what is before it, or of
            all outside of it.
    """

    default: Rule = ("fixed", 0.0)
    rules: Mapping[str, RuleName] = field(default_factory=dict)
    own_settings: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    official: bool = False
    greedy: bool = False
    in_blocks: bool = False
    cache: Literal["none", "prefix", "dual"] = "none"


_CACHE_RULES: Mapping[str, RuleName] = {
    "factor": "factor",
    "entropy_bound": "entropy",
    "threshold": "threshold",
}
_NOT_IN_BLOCKS = (
    "cfg_scale",
    "remasking",
    "start_length",
    "logits_eos_inf",
    "confidence_eos_eot_inf",
)
SAMPLERS: Mapping[SamplerName, Sampler] = {
    # The most confident tokens of each step, in a fixed number of steps.
    "official": Sampler(official=True),
    # In each step all tokens that are certain enough, by one of three measures.
    "threshold": Sampler(("threshold", 0.9), {"factor": "factor", "threshold": "threshold"}),
    "factor": Sampler(("factor", 1.0), {"factor": "factor"}),
    "entropy": Sampler(("entropy", 0.1), {"entropy_bound": "entropy"}),
    # Keys and values are computed once for each block.
    "prefix_cache": Sampler(rules=_CACHE_RULES, cache="prefix"),
    "dual_cache": Sampler(rules=_CACHE_RULES, cache="dual"),
    # The tokens of `official`, from several of its steps in one forward pass.
    "verify": Sampler(official=True, greedy=True),
    # All tokens of a block above a probability, and a least number of them.
    "llada2": Sampler(
        default=("above", 0.95),
        rules={"threshold": "above"},
        own_settings=("minimal_topk", "eos_in_prompt_ends", "cache_blocks"),
        lacks=_NOT_IN_BLOCKS,
        in_blocks=True,
    ),
    # It also replaces written tokens that it is no longer sure of.
    "llada21": Sampler(
        default=("above", 0.95),
        rules={"threshold": "above"},
        own_settings=("editing_threshold", "max_post_steps", "num_to_transfer", "cache_blocks"),
        lacks=(*_NOT_IN_BLOCKS, "steps"),
        greedy=True,
        in_blocks=True,
    ),
}
# Settings that only some samplers have.
OWN_SETTINGS = frozenset(
    name for sampler in SAMPLERS.values() for name in (*sampler.rules, *sampler.own_settings)
)
