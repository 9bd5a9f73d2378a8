"""The networks of the LLaDA family: their checkpoints in, our checkpoints out.

    families/          which networks there are: config.json -> sizes, features, official names
    network.py         the network that these ask for; layers/: what it is made of
    kernels/           what layers may compute with instead of torch's operations
    configuration.py   the config of a network; settings.py: config.json, checked without torch
    loading.py         a model directory -> a network; initialization.py: random weights
    flops.py           the operations that a training needs, and a GPU makes
    partition.py       the part of each parameter that a rank keeps under ZeRO-3
    index.py           where the tensors of a model directory are
    safe_load.py       torch's files, without running code from them
    export.py          a network or a checkpoint -> a model directory
    adapter_plan.py    LoRA: which matrices it adapts; adapters.py: its layers in a network
    adapter_export.py  adapters -> merged into a model directory, or a directory for PEFT

`settings` and `index` describe a model directory without torch: the login node checks one with
them before a job is submitted. Therefore the names below are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llada_sft.model.configuration import NetworkConfig
    from llada_sft.model.loading import build_model, load_model
    from llada_sft.model.network import Network

__all__ = ["Network", "NetworkConfig", "build_model", "load_model"]

_MODULES = {
    "Network": "network",
    "NetworkConfig": "configuration",
    "build_model": "loading",
    "load_model": "loading",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
