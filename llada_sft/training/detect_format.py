"""`data.format: auto`: the format of a source, detected by rank 0 for all ranks."""

from dataclasses import replace

from llada_sft.data.records.detect import detect_format
from llada_sft.data.sources import Source
from llada_sft.errors import DataError, PeerFailedError
from llada_sft.placement import Placement
from llada_sft.training.consensus import Consensus


def settle_format(
    source: Source, cache_dir: str | None, placement: Placement, consensus: Consensus
) -> Source:
    """Return a source with its format; rank 0 prints it, and the fields that are not read.

    Raises:
        DataError: The first shard cannot be read.
        PeerFailedError: Rank 0 could not read it (raised on the other ranks).
    """
    if source.format == "raw":
        return source
    record_format: object = None
    if placement.rank == 0:
        try:
            detected = detect_format(source, cache_dir)
        except DataError:
            # The others learn of it here instead of waiting for this rank.
            consensus.gather(None)
            raise
        if source.format == "auto":
            print(f"{source.path}: {detected}", flush=True)
        if detected.unread:
            print(f"{source.path}: {detected.unread_words}", flush=True)
        record_format = detected.format or "raw"
    settled = consensus.gather(record_format)[0]
    if settled is None:
        raise PeerFailedError("1 other rank(s) stopped; see their lines")
    return replace(source, format=settled)  # type: ignore[arg-type]
