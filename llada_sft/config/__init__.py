"""What a run is.

schema.py          every section and key, with its type and its limits
data_section.py    the section data; model_section.py: model and lora; values.py: types of values
objective_section.py  the section objective
slurm_section.py   the section slurm, and the numbers of nodes that divide the batch
validation_section.py  the section validation, and the names of its numbers
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
