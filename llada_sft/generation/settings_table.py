"""The settings of samplers outside of Python: their ranges, keys and options, without torch.

Each is a field of `SamplerSettings` (settings.py), whose docstring says what it does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# Whole numbers from 1 or from 0 on, numbers from 0 on, numbers from 0 to 1.
Range = Literal["count", "count_or_0", "amount", "share"]


@dataclass(frozen=True)
class Setting:
    """How a setting is written.

    Attributes:
        limits: Which numbers it may be; None: what its type says.
        key: The meaning of the key of `config/eval/`; empty: there is none.
        option: The help of the option of `sample` and `chat`, perhaps empty; None: there is none.
    """

    limits: Range | None = None
    key: str = ""
    option: str | None = None


SETTINGS: Mapping[str, Setting] = {
    "sampler": Setting(
        key="docs/samplers.md says which one is for what.",
        option="docs/samplers.md (default: official)",
    ),
    "steps": Setting(
        "count",
        key="Forward passes in all, of samplers with a fixed number; null = gen_length.",
        option="forward passes in all, of samplers with a fixed number (default: gen-length)",
    ),
    "gen_length": Setting(
        "count",
        key="Tokens of an answer, at most.",
        option="tokens of an answer, at most",
    ),
    "block_length": Setting(
        "count",
        key="Tokens of a block. null = 256; of llada2 and llada21, whose blocks are those of the"
        " training, 32.",
        option="tokens of a block",
    ),
    "threshold": Setting(
        "share",
        key="Tokens of at least this probability are written together. null = the sampler's"
        " default.",
        option="tokens of at least this probability are written together",
    ),
    "factor": Setting(
        "amount",
        key="Of the sampler factor, and of caches. null = the sampler's default.",
        option="of the sampler of this name",
    ),
    "entropy_bound": Setting(
        "amount",
        key="Of the sampler entropy, and of caches, in nats. null = the sampler's default.",
        option="of the sampler 'entropy', in nats",
    ),
    "temperature": Setting(
        "amount",
        key="0 takes the most likely token.",
        option="0 takes the most likely token",
    ),
    "cfg_scale": Setting(
        "amount",
        key="Strength of classifier-free guidance; 0 = none, and half the work.",
        option="strength of classifier-free guidance",
    ),
    "remasking": Setting(key="Which predictions a fixed number of steps keeps.", option=""),
    "eos_early_stop": Setting(
        key="Whether an answer ends at its first EOS. null = unless the sampler is official or"
        " verify.",
    ),
    "eos_token_id": Setting(),
    "mask_token_id": Setting(),
    "logits_eos_inf": Setting(
        key="As in the official code: EOS is never written.", option="never write EOS"
    ),
    "confidence_eos_eot_inf": Setting(
        key="As in the official code: EOS and the end of a turn are written last.",
        option="write EOS and the end of a turn last",
    ),
    "eot_token_id": Setting(),
    "start_length": Setting(
        "count",
        key="Tokens of the canvas at first; it grows up to gen_length while no EOS is probable.",
        option="tokens of the canvas at first; it grows while no end is in sight",
    ),
    "growth_threshold": Setting("share"),
    "max_drafts": Setting("count"),
    "seed": Setting(key="Of all random draws."),
    "minimal_topk": Setting(
        "count",
        key="Of llada2: at most gen_length // this steps for each block.",
        option="of llada2: at most gen-length // this steps for each block",
    ),
    "eos_in_prompt_ends": Setting(),
    "editing_threshold": Setting(
        "share",
        key="Of llada21: from this probability on another token replaces a written one.",
        option="of llada21: from here on another token replaces a written one",
    ),
    "max_post_steps": Setting(
        "count_or_0",
        key="Of llada21: passes over a block that is written, at most.",
        option="of llada21: passes over a block that is written, at most",
    ),
    "num_to_transfer": Setting(
        "count",
        key="Of llada21: mask tokens that a step writes, at least.",
        option="of llada21: tokens that a step writes, at least",
    ),
    "cache_blocks": Setting(),
}
