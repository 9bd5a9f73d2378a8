"""The members of the family, each in one file; docs/add-member.md says how one is added.

    family.py         what a file of this folder makes: how config.json is read
    architecture.py   what it is read into: sizes, features, official names
    keys.py           checks of values in config.json
    llada.py          LLaDA-8B, LLaDA-1.5, iLLaDA
    llada_moe.py      LLaDA-MoE-7B-A1B
    llada2.py         LLaDA2.0 and LLaDA2.1, mini and flash
    dream.py          Dream-7B; qwen_names.py: names of layers that several members have

Nothing here imports torch. Outside this folder nothing asks which member a network is: everything
is decided by its `Architecture`.
"""

from collections.abc import Mapping
from typing import Any

from llada_sft.model.families import dream, llada, llada2, llada_moe
from llada_sft.model.families.family import Family

FAMILIES: list[Family] = [llada_moe.FAMILY, llada.FAMILY, llada2.FAMILY, dream.FAMILY]


def family_of(values: Mapping[str, Any]) -> Family | None:
    """Return the member that a config.json describes; None if there is none."""
    return next((family for family in FAMILIES if family.describes(values)), None)
