"""THE REVERSE PROCESS: prompts -> answers, by one of several samplers.

    settings.py    what a sampler is asked for, checked without torch
    answers.py     `generate`: a batch of prompts -> its answers
    canvas.py      the prompts with the masked and the written tokens of their answers
    official.py    the official sampler's tokens, all of them
    blocks.py      decoding block by block, with any rule and any cache
    llada2.py      the samplers of LLaDA2.0 and 2.1, for attention in blocks
    padded.py      `model.generate`: padded tensors in and out
    verify.py      several steps of the official sampler from one pass, with its tokens
    predictor.py   forward passes over rows of a canvas, counted
    candidates.py  the token of each masked position, and how good it is
    selection.py   how many of the best ones are written
    growth.py      a canvas that starts short

The names below are imported when they are first used: `settings` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llada_sft.generation.answers import Answer, generate
    from llada_sft.generation.settings import SamplerSettings

__all__ = ["Answer", "SamplerSettings", "generate"]

_MODULES = {"Answer": "answers", "SamplerSettings": "settings", "generate": "answers"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
