"""The validation rows of a rank, as micro-batches that stay the same through the training."""

from llada_sft.config.data_section import DataConfig
from llada_sft.data.examples.encode import Encoder, Example
from llada_sft.data.rows.stream import RowStream
from llada_sft.data.sources import Source
from llada_sft.data.steps.collate import UnmaskedBatch
from llada_sft.data.steps.packing import micro_batches


def validation_batches(
    config: DataConfig,
    source: Source,
    encoder: Encoder,
    rank: int,
    world_size: int,
    micro_batch_size: int,
    max_rows: int,
) -> list[UnmaskedBatch]:
    """Encode this rank's validation rows: every world_size-th of the first `max_rows`.

    The config's `eos_tail` must be a number: with `batch_max` the loss would depend on the number
    of ranks.
    """
    assert config.eos_tail != "batch_max"
    stream = RowStream(source.shards, seed=0, shuffle=False, cache_dir=config.cache_dir)
    examples: list[Example] = []
    for number, row in enumerate(stream.rows(0, stream.start_positions())):
        if number >= max_rows:
            break
        if number % world_size == rank:
            examples.extend(encoder(row).examples)
    return list(micro_batches(config, micro_batch_size, encoder.eos_token_id, [], iter(examples)))
