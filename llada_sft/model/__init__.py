"""The network: the official LLaDA architecture, its checkpoints in, our checkpoints out."""

from llada_sft.model.configuration import LLaDAConfig
from llada_sft.model.llada import LLaDAModelLM
from llada_sft.model.loading import build_model, load_model

__all__ = ["LLaDAConfig", "LLaDAModelLM", "build_model", "load_model"]
