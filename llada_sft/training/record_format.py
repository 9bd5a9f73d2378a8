"""`data.format: auto`: the format of a dataset, told by the first rank for all."""

from llada_sft.config.schema import DataConfig
from llada_sft.data.detect import detect_format
from llada_sft.data.shards import list_shards
from llada_sft.placement import Placement
from llada_sft.training.consensus import Consensus


def settle_format(
    config: DataConfig, path: str, placement: Placement, consensus: Consensus
) -> DataConfig:
    """Return the data section with the format of the dataset at `path`; rank 0 prints it.

    Raises:
        DataError: The first shard cannot be read.
    """
    if config.format != "auto":
        return config
    found = None
    if placement.rank == 0:
        detected = detect_format(list_shards(path), config)
        print(f"{path}: {detected}", flush=True)
        found = detected.format or "raw"
    return config.model_copy(update={"format": consensus.gather(found)[0]})
