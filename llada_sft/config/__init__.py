"""What a run is: the schema, its reader, and the arithmetic that follows from it."""

from llada_sft.config.reader import dump_config, load_config, resolve_paths
from llada_sft.config.schema import Config

__all__ = ["Config", "dump_config", "load_config", "resolve_paths"]
