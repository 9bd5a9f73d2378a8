"""The config's `data` section -> this rank's rows and validation batches; `objective` -> noise."""

from dataclasses import replace
from pathlib import Path

from llada_sft.config.schema import Config
from llada_sft.data.examples.answer_end import end_token_ids
from llada_sft.data.examples.encode import build_encoder
from llada_sft.data.records.detect import detect_format
from llada_sft.data.sources import Source, list_sources, list_validation
from llada_sft.data.steps.dataset import StepDataset
from llada_sft.data.steps.local_step import StepSize
from llada_sft.errors import DataError, PeerFailedError
from llada_sft.model.configuration import NetworkConfig
from llada_sft.placement import Placement
from llada_sft.run_dir import RunDir
from llada_sft.training.build_network import token_ids
from llada_sft.training.checkpoint.changed_files import files_to_restart
from llada_sft.training.checkpoint.resume import Resume
from llada_sft.training.consensus import Consensus
from llada_sft.training.masks.edits import EditSource
from llada_sft.training.masks.level_losses import LevelLosses
from llada_sft.training.noising import NoiseSource
from llada_sft.training.validation.rows import ValidationSet, read_set


def build_dataset(
    config: Config,
    network_config: NetworkConfig,
    placement: Placement,
    resume: Resume,
    run: RunDir,
    consensus: Consensus,
) -> StepDataset:
    """Index this rank's shards and find their positions."""
    config = config.in_examples
    sources = [
        settle_format(source, config.data.cache_dir, placement, consensus)
        for source in list_sources(config.data, config.train.epochs)
    ]
    dataset = StepDataset(
        config.data,
        Path(config.model.path),
        token_ids(network_config, config.objective.block_tokens),
        sources=[source.of_rank(placement.rank, placement.world_size) for source in sources],
        seed=config.run.seed,
        size=StepSize(config.train.micro_batch_size, config.train.accumulate_grad_batches),
        epoch=resume.data.epoch if resume.data else 0,
        positions=resume.positions,
        quarantine=run.rank_quarantine(placement.rank),
    )
    if resume.data:
        changed = files_to_restart(
            config.data,
            resume.data,
            names={shard.name for source in sources for shard in source.shards},
            fingerprints=dataset.fingerprints(),
            consensus=consensus,
            rank=placement.rank,
        )
        dataset.restart_files(changed)
    return dataset


def read_validation(
    config: Config, network_config: NetworkConfig, placement: Placement, consensus: Consensus
) -> list[ValidationSet]:
    """Read all validation sets, the same on every rank."""
    ids, sets = token_ids(network_config, config.objective.block_tokens), []
    fixed = {"end": config.data.fixed_end, "random_length": 0.0}
    if config.data.end == "void":
        # What hides the void tokens is no part of the answer's bound.
        fixed["end_tokens"] = 0
    for unsettled in list_validation(config.data):
        source = settle_format(unsettled, config.data.cache_dir, placement, consensus)
        data = config.data.model_copy(update={**fixed, "format": source.format})
        encoder = build_encoder(data, Path(config.model.path), ids)
        max_rows = config.train.validation_max_rows
        sets.append(read_set(data, source, encoder, placement, consensus, max_rows))
    return sets


def never_written(config: Config, network_config: NetworkConfig) -> int | None:
    """Return what the network may not put in the place of a token, if it is to put any."""
    edit = config.objective.edit
    if not edit.share or edit.source == "random":
        return None
    return token_ids(network_config).mask_token_id


def build_noise(
    config: Config,
    network_config: NetworkConfig,
    placement: Placement,
    levels: LevelLosses | None = None,
) -> NoiseSource:
    """Return what draws the noise of this rank's examples."""
    ids, edits = token_ids(network_config), None
    if config.objective.edit.share:
        edits = EditSource(config.objective.edit, ids, end_token_ids(config.data, ids))
    return NoiseSource(
        config.objective,
        config.run.seed,
        ids.mask_token_id,
        placement.rank,
        placement.world_size,
        levels,
        edits,
    )


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
