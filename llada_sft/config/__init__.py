"""What a run is.

schema.py          a config: its sections, and what must fit between them
sections/          a module for each: its keys, with their types and limits
values.py          types of values
reader.py          YAML and overrides -> a config, with all mistakes at once
yaml12.py          YAML 1.2
problems.py        a mistake in our words; keys that had another name
record_formats.py  the formats of records, and their fields
arithmetic.py      what follows: ranks, batches, steps
changes.py         what a resume may change
places/            presets of clusters, and the paths in a config
"""

from llada_sft.config.places.paths import resolve_paths
from llada_sft.config.reader import dump_config, load_config, load_run_config
from llada_sft.config.schema import Config

__all__ = ["Config", "dump_config", "load_config", "load_run_config", "resolve_paths"]
