"""Everything that is to be known of the data of a run: read in parallel, then worked out."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from llada_sft.check.chunks import Chunk, first_rows, grouped, spread, spread_sample, whole_files
from llada_sft.check.duplicates import found_in, repeated
from llada_sft.check.epoch_plan import PlanEpoch, RankEpoch, estimate
from llada_sft.check.lengths import Lengths, summarize
from llada_sft.check.reading import (
    CountFiles,
    CountRows,
    Part,
    ReadChunks,
    ReadRows,
    Rows,
    Worker,
    join,
)
from llada_sft.check.rendering import Shown
from llada_sft.check.workers import Workers
from llada_sft.config.schema import Config
from llada_sft.config.sections.data import DataConfig
from llada_sft.data.examples.row_counts import RowCounts
from llada_sft.data.records.detect import detect_format
from llada_sft.data.records.normalize import RecordReader
from llada_sft.data.rows.bad_row import SHOWN, BadRow
from llada_sft.data.sources import Source, list_sources, list_validation
from llada_sft.data.steps.local_step import StepSize

_CHUNK_ROWS = 512
# Of files that are counted together.
_GROUP_BYTES = 1 << 20
_NUM_SHOWN = 3
# Chunks of which some texts are decoded again.
_NUM_DECODED = 64
_SHOWN_REPEATS = 5
Names = list[tuple[str, str]]


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        config: With absolute paths.
        ranks: For how many.
        sample: How many rows to read; None is all.
        progress: Draw a bar on standard error.
    """

    config: Config
    ranks: int
    sample: int | None = None
    progress: bool = False


@dataclass(frozen=True)
class SourceRead:
    """A source, its format in words, and all of its rows."""

    source: Source
    format: str
    num_rows: int


@dataclass(frozen=True)
class Dataset:
    """What was read of `data.train` or `data.validation`.

    Attributes:
        path: As the config has it.
        sources: The one dataset, or those that are mixed.
        num_rows: All rows of each shard.
        counts: What became of those that were read.
        first_bad: The first bad rows.
        examples: How many there are.
        prompts, responses: Their lengths in tokens; responses without the tail of EOS.
        not_given_back: Texts that the tokenizer decodes to others, and these.
    """

    path: str
    sources: list[SourceRead]
    num_rows: list[int]
    counts: RowCounts
    first_bad: list[BadRow]
    examples: int
    prompts: Lengths | None
    responses: Lengths | None
    not_given_back: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Survey:
    """All that was found.

    Attributes:
        request: What was asked for.
        train, validation: The datasets.
        epoch: The first epoch of each rank; empty with fewer shards than ranks.
        repeats: Training rows that an earlier one is the same as, and the first of them.
        leaks: Training rows that are in validation too, and the first of them.
        leaked: Validation rows that are in training.
        shown: A few examples.
    """

    request: Request
    train: Dataset
    validation: Dataset | None
    epoch: list[RankEpoch]
    repeats: int
    first_repeats: Names
    leaks: int
    first_leaks: Names
    leaked: int
    shown: list[Shown] = field(default_factory=list)

    @property
    def estimated(self) -> bool:
        """Whether only a sample of the rows was read."""
        return self.train.counts.rows < sum(self.train.num_rows)


def survey(request: Request, workers: Workers[Worker]) -> Survey:
    """Read the data of a run.

    Raises:
        LladaSftError: A file cannot be read, or a worker has died.
    """
    config = request.config
    sources = list_sources(config.data, config.train.epochs)
    train = _Reading(config.data, sources, config.run.seed, workers, request.progress)
    train.read(
        lambda rows: (
            whole_files(rows, _CHUNK_ROWS)
            if request.sample is None
            else spread_sample(rows, request.sample, _CHUNK_ROWS)
        ),
        _NUM_SHOWN,
    )
    repeats, first_repeats = repeated(train.all_rows, _SHOWN_REPEATS)
    validation, leaks, first_leaks, leaked = None, 0, Names(), 0
    if held_out := list_validation(config.data):
        validation = _Reading(config.data, held_out, 0, workers, request.progress)
        used = config.train.validation_max_rows
        files = [len(source.shards) for source in held_out]
        validation.read(lambda rows: first_rows(rows, files, used, _CHUNK_ROWS))
        leaks, pairs = found_in(train.all_rows, validation.all_rows, _SHOWN_REPEATS)
        first_leaks = [(train.where(row), validation.where(other)) for row, other in pairs]
        leaked, _ = found_in(validation.all_rows, train.all_rows, 0)
    return Survey(
        request=request,
        train=train.dataset(),
        validation=None if validation is None else validation.dataset(),
        epoch=_epoch(request, train, workers),
        repeats=repeats,
        first_repeats=[(train.where(row), train.where(other)) for row, other in first_repeats],
        leaks=leaks,
        first_leaks=first_leaks,
        leaked=leaked,
        shown=train.shown,
    )


def _epoch(request: Request, train: "_Reading", workers: Workers[Worker]) -> list[RankEpoch]:
    ranks = range(request.ranks)
    if any(len(source.shards) < len(ranks) for source in train.sources):
        return []
    config = request.config.in_examples
    size = StepSize(config.train.micro_batch_size, config.train.accumulate_grad_batches)
    dealt = [[source.of_rank(rank, len(ranks)) for source in train.sources] for rank in ranks]
    if train.counts.rows < sum(train.num_rows):
        return _estimated(config.data, size, dealt, train)
    rows = train.rows_by_name
    tasks = [
        PlanEpoch(
            of_rank,
            {shard.name: rows[shard.name] for source in of_rank for shard in source.shards},
            config.run.seed,
            size,
        )
        for of_rank in dealt
    ]
    done = dict(_progress(workers.run(tasks), len(tasks), "ranks", request.progress))
    return [done[rank] for rank in ranks]


def _estimated(
    config: DataConfig, size: StepSize, dealt: list[list[Source]], train: "_Reading"
) -> list[RankEpoch]:
    rows = train.rows_by_name
    all_rows = dict(zip(rows, train.num_rows, strict=True))
    # Of named sources, the epochs are one after another.
    names = [
        [
            shard.name
            for source in of_rank
            for _ in range(source.epochs if source.name else 1)
            for shard in source.shards
        ]
        for of_rank in dealt
    ]
    samples = [[rows[name] for name in of_rank] for of_rank in names]
    return estimate(
        config, size, samples, [sum(all_rows[name] for name in of_rank) for of_rank in names]
    )


class _Reading:
    """One dataset, or several that are mixed, as far as it is read.

    Args:
        config: The data section.
        sources: All shards of each.
        seed: Keys what is random in a row's example.
        workers: They read.
        progress: Draw a bar.
    """

    def __init__(
        self,
        config: DataConfig,
        sources: Sequence[Source],
        seed: int,
        workers: Workers[Worker],
        progress: bool,
    ) -> None:
        self._seed, self._workers, self._progress = seed, workers, progress
        settled = [_settle(source, config.cache_dir) for source in sources]
        self.sources = [source for source, _ in settled]
        self._formats = [name for _, name in settled]
        self._multi_turn = config.multi_turn
        self.files = [(source, shard) for source in self.sources for shard in source.shards]
        self.num_rows: list[int] = []
        self.rows: list[Rows] = []
        self.counts, self.first_bad = RowCounts(), list[BadRow]()
        self.not_given_back: list[tuple[str, str]] = []
        self.shown: list[Shown] = []

    def read(self, choose: Callable[[Sequence[int]], list[Chunk]], num_shown: int = 0) -> None:
        """Count the rows of all files, and read those that are chosen."""
        tasks = [CountRows(shard) for _, shard in self.files]
        groups = grouped(list(map(_stored_bytes, tasks)), _GROUP_BYTES)
        done: dict[int, list[int]] = {}
        with _bar(len(tasks), "files", self._progress) as bar:
            for number, rows in self._workers.run([CountFiles(tasks[group]) for group in groups]):
                done[number] = rows
                bar.update(len(rows))
        self.num_rows = [rows for number in range(len(groups)) for rows in done[number]]
        chunks = choose(self.num_rows)
        parts = list(self._read_all(chunks, num_shown))
        self._keep(chunks, parts)

    def _read_all(self, chunks: list[Chunk], num_shown: int) -> Iterator[Part]:
        shown = spread(len(chunks), num_shown)
        decoded = spread(len(chunks), _NUM_DECODED)
        tasks = [
            self._task(chunk, place in shown, place in decoded)
            for place, chunk in enumerate(chunks)
        ]
        sizes = [len(chunk.rows) for chunk in chunks]
        groups = grouped(sizes, _CHUNK_ROWS)
        parts: dict[int, list[Part]] = {}
        with _bar(sum(sizes), "rows", self._progress) as bar:
            for number, read in self._workers.run([ReadChunks(tasks[group]) for group in groups]):
                parts[number] = read
                bar.update(sum(len(part.rows) for part in read))
        return (part for number in range(len(groups)) for part in parts[number])

    def _task(self, chunk: Chunk, show: bool, decode: bool) -> ReadRows:
        source, shard = self.files[chunk.number]
        reader = RecordReader(source.format, source.rules, self._multi_turn)
        return ReadRows(shard, chunk.rows, reader, self._seed, show, decode)

    def _keep(self, chunks: list[Chunk], parts: list[Part]) -> None:
        of_file: list[list[Rows]] = [[] for _ in self.files]
        for chunk, part in zip(chunks, parts, strict=True):
            of_file[chunk.number].append(part.rows)
            self.counts += part.counts
            self.first_bad += part.first_bad[: SHOWN - len(self.first_bad)]
            self.not_given_back += part.not_given_back
            if part.shown is not None:
                self.shown.append(part.shown)
        self.rows = [join(parts) for parts in of_file]
        self.all_rows = join(self.rows)
        self._ends = list(accumulate(map(len, self.rows)))

    @property
    def rows_by_name(self) -> dict[str, Rows]:
        """The rows of each shard that were read, by its name."""
        return dict(zip((shard.name for _, shard in self.files), self.rows, strict=True))

    def where(self, row: int) -> str:
        """Return the file and line of one of the rows that were read."""
        number = bisect_right(self._ends, row)
        return f"{self.files[number][1].shard}:{self.all_rows.lines.item(row)}"

    def dataset(self) -> Dataset:
        rows = self.all_rows
        return Dataset(
            path=", ".join(source.path for source in self.sources),
            sources=self._sources_read(),
            num_rows=self.num_rows,
            counts=self.counts,
            first_bad=self.first_bad,
            examples=len(rows.lengths),
            prompts=summarize(rows.lengths - rows.responses - rows.voids),
            responses=summarize(rows.responses - rows.tails),
            not_given_back=self.not_given_back,
        )

    def _sources_read(self) -> list[SourceRead]:
        read, begin = [], 0
        for source, words in zip(self.sources, self._formats, strict=True):
            end = begin + len(source.shards)
            num_rows = sum(self.num_rows[begin:end])
            read.append(SourceRead(source, words, num_rows))
            begin = end
        return read


def _stored_bytes(task: CountRows) -> int:
    shard = task.shard.shard
    # A remote file, or one that is not there, is a task of its own.
    try:
        return shard.stat().st_size if isinstance(shard, Path) else _GROUP_BYTES
    except OSError:
        return _GROUP_BYTES


def _settle(source: Source, cache_dir: str | None) -> tuple[Source, str]:
    """Return the format of a source, detected as the training does, in words."""
    if source.format != "auto":
        return source, f"{source.format} (data.format)"
    detected = detect_format(source, cache_dir)
    return replace(source, format=detected.format or "raw"), str(detected)


def _bar(total: int, unit: str, progress: bool) -> "tqdm[Any]":
    return tqdm(total=total, unit=f" {unit}", disable=not progress, leave=False)


def _progress(
    results: Iterator[Any], total: int, unit: Literal["files", "ranks"], progress: bool
) -> Iterator[Any]:
    return iter(tqdm(results, total=total, unit=f" {unit}", disable=not progress, leave=False))
