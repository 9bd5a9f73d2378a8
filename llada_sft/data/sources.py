"""What `data.train` names: the shards of one dataset, or of several that are mixed.

    a path, or a list of them      one dataset, whose epochs follow each other
    sources by name                each with epochs of its own, mixed by weight (mixture.py)

A shard's name keys its order and its noise and is kept in checkpoints. It is the path below the
dataset's folder, which may thus be moved; a source's name comes before it.
"""

import os.path
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from llada_sft.config.record_formats import RecordFormat
from llada_sft.config.sections.data import DataConfig
from llada_sft.data.records.formats import RecordRules
from llada_sft.data.shards import assign_files, list_shards, shard_root
from llada_sft.data.storage.files import Shard, shard_name
from llada_sft.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class NamedShard:
    """A shard, and what positions and messages call it."""

    name: str
    shard: Shard


@dataclass(frozen=True)
class Source:
    """Shards whose rows are trained on equally often.

    Attributes:
        name: Empty for a dataset that is not mixed with others.
        shards: All of them, or those of one rank.
        path: What messages call it.
        epochs: Passes over the rows.
        weight: Share of what is trained on, in proportion to the other sources'.
        format, rules: Of its records.
    """

    name: str
    shards: tuple[NamedShard, ...]
    path: str = ""
    epochs: int = 1
    weight: float = 1.0
    format: RecordFormat = "auto"
    rules: RecordRules = field(default_factory=RecordRules)

    def owns(self, name: str) -> bool:
        """Return whether a shard of this name is, or was, one of the source's."""
        return not self.name or name.startswith(f"{self.name}/")

    def of_rank(self, rank: int, world_size: int) -> "Source":
        """Keep the shards of one rank.

        Raises:
            ConfigError: There are fewer shards than ranks.
        """
        try:
            assign_files([named.shard for named in self.shards], rank, world_size)
        except ConfigError as error:
            where = f"data.train.{self.name}: " if self.name else ""
            raise ConfigError(f"{where}{error}") from None
        return replace(self, shards=self.shards[rank::world_size])


def list_sources(data: DataConfig, epochs: int) -> list[Source]:
    """List the shards of everything that `data.train` names.

    Args:
        data: The data section.
        epochs: `train.epochs`, for sources that do not say how often.

    Raises:
        DataError: There are none, one is not a file, or one is named twice.
    """
    if not isinstance(data.train, dict):
        paths = [data.train] if isinstance(data.train, str) else data.train
        shards = _named(data.train) if isinstance(data.train, str) else _one_dataset(data.train)
        path = ", ".join(paths)
        return [Source("", shards, path, epochs, format=data.format, rules=rules_of(data))]
    return [
        Source(
            name=name,
            shards=_named(source.path, f"{name}/"),
            path=source.path,
            epochs=source.epochs or epochs,
            weight=source.weight,
            format=source.format or data.format,
            rules=rules_of(data, source.fields),
        )
        for name, source in data.train.items()
    ]


def list_validation(data: DataConfig) -> list[Source]:
    """List the shards of everything that `data.validation` names: sets of rows, read in order.

    A set's name is no part of its shards' names: its masks stay the same when it gets another one.

    Raises:
        DataError: There are none in a set, or one is not a file.
    """
    return [
        Source(name, _named(path), path, format=data.format, rules=rules_of(data))
        for name, path in data.validation_sets.items()
    ]


def rules_of(data: DataConfig, fields: Mapping[str, str] | None = None) -> RecordRules:
    """Return what the config says of the rows; `fields`: those of one source, if it has its own."""
    return RecordRules(
        data.fields if fields is None else fields, data.roles, frozenset(data.ignore_fields)
    )


def _one_dataset(paths: Sequence[str]) -> tuple[NamedShard, ...]:
    shards = [shard for path in paths for shard in list_shards(path)]
    twice = sorted(str(shard) for shard, count in Counter(shards).items() if count > 1)
    if twice:
        raise DataError(f"{twice[0]}: named twice by data.train; remove one of its paths")
    return _below_common_folder(shards)


def name_shards(
    shards: Iterable[Shard], root: Path | str, prefix: str = ""
) -> tuple[NamedShard, ...]:
    """Return shards, named by their paths below a folder."""
    return tuple(NamedShard(prefix + shard_name(root, shard), shard) for shard in shards)


def _named(path: str, prefix: str = "") -> tuple[NamedShard, ...]:
    return name_shards(list_shards(path), shard_root(path), prefix)


def _below_common_folder(shards: Sequence[Shard]) -> tuple[NamedShard, ...]:
    """Return shards, named below the folder that they share; by whole URLs if some are remote."""
    if not all(isinstance(shard, Path) for shard in shards):
        return tuple(NamedShard(str(shard), shard) for shard in shards)
    folder = os.path.commonpath([shard.parent for shard in shards if isinstance(shard, Path)])
    return name_shards(shards, Path(folder))
