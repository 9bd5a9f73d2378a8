"""Rows -> what is kept of them: arrays of lengths and hashes, and the first few bad rows.

`ReadRows` is what a worker does with a chunk; `Worker` is what it builds once. Of each row about
30 bytes are kept, of each further example 16.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from llada_sft.check.rendering import Shown, show, texts_not_given_back
from llada_sft.config.sections.data import DataConfig
from llada_sft.data.examples.encode import Encoder, Example, build_encoder
from llada_sft.data.examples.quarantine import BadRowError
from llada_sft.data.examples.row_counts import GOOD_ROW, RowCounts
from llada_sft.data.examples.tokenizer import TokenIds
from llada_sft.data.records.normalize import RecordReader
from llada_sft.data.rows.bad_row import SHOWN, BadRow
from llada_sft.data.rows.position import FilePosition
from llada_sft.data.rows.row import Row
from llada_sft.data.rows.stream import RowStream
from llada_sft.data.sources import NamedShard

# Of a chunk, rows whose texts are decoded again.
_DECODED_ROWS = 4


@dataclass(frozen=True)
class Rows:
    """What is kept of rows, in the order of their file.

    Attributes:
        lines: uint64 [rows].
        records: uint64 [rows], a hash of each row's text.
        ids: uint64 [rows], a hash of what it was encoded to; that of the text if of nothing.
        bad: bool [rows].
        num_examples: uint32 [rows], how many examples each makes.
        lengths: uint32 [examples], tokens, with all that follows the response.
        responses: uint32 [examples], response tokens, the tail included.
        tails: uint32 [examples], tokens of the tail, which are learned as the response is.
        voids: uint32 [examples], void tokens after it.
    """

    lines: NDArray[np.uint64]
    records: NDArray[np.uint64]
    ids: NDArray[np.uint64]
    bad: NDArray[np.bool_]
    num_examples: NDArray[np.uint32]
    lengths: NDArray[np.uint32]
    responses: NDArray[np.uint32]
    tails: NDArray[np.uint32]
    voids: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.lines)


_TYPES = {
    "lines": np.uint64,
    "records": np.uint64,
    "ids": np.uint64,
    "bad": np.bool_,
    "num_examples": np.uint32,
    "lengths": np.uint32,
    "responses": np.uint32,
    "tails": np.uint32,
    "voids": np.uint32,
}


def join(parts: Sequence[Rows]) -> Rows:
    """Put rows of several chunks after each other."""
    return Rows(
        **{
            name: np.concatenate([np.empty(0, kind), *(getattr(part, name) for part in parts)])
            for name, kind in _TYPES.items()
        }
    )


@dataclass(frozen=True)
class Part:
    """What became of a chunk.

    Attributes:
        rows, counts, first_bad: Of its rows.
        shown: Its first example, if that is to be shown.
        not_given_back: A text that the tokenizer decodes to another, and that one, if any.
    """

    rows: Rows
    counts: RowCounts
    first_bad: list[BadRow]
    shown: Shown | None
    not_given_back: list[tuple[str, str]]


@dataclass
class Worker:
    """What a process builds once: hook, tokenizer, and the file that it reads.

    Args:
        config: The data section.
        tokenizer_dir: The folder of the tokenizer.
        ids: Special tokens and vocabulary.
    """

    config: DataConfig
    tokenizer_dir: Path
    ids: TokenIds

    def __post_init__(self) -> None:
        self._encoder = build_encoder(self.config, self.tokenizer_dir, self.ids)
        self._open: tuple[NamedShard, RowStream] | None = None

    def encoder(self, reader: RecordReader, seed: int) -> Encoder:
        return replace(self._encoder, reader=reader, seed=seed)

    def stream(self, shard: NamedShard) -> RowStream:
        """Open a shard, in the order of its lines; the last one stays open."""
        if self._open is None or self._open[0] != shard:
            rows = RowStream([shard], 0, shuffle=False, cache_dir=self.config.cache_dir)
            self._open = shard, rows
        return self._open[1]


@dataclass(frozen=True)
class BuildWorker:
    """Makes a `Worker` in another process."""

    config: DataConfig
    tokenizer_dir: Path
    ids: TokenIds

    def __call__(self) -> Worker:
        return Worker(self.config, self.tokenizer_dir, self.ids)


@dataclass(frozen=True)
class CountRows:
    """Count the rows of a shard: it is indexed, and fetched and decompressed before if need be."""

    shard: NamedShard

    def __call__(self, worker: Worker) -> int:
        return worker.stream(self.shard).num_rows


@dataclass(frozen=True)
class ReadRows:
    """Encode rows of a shard as the first epoch does.

    Args:
        shard: The shard.
        rows: Their numbers in it.
        reader: For records of the dataset's format.
        seed: `run.seed`; 0 for validation.
        show: Also render the first example.
        decode: Also look whether the tokenizer gives back the texts of the first rows.
    """

    shard: NamedShard
    rows: Sequence[int]
    reader: RecordReader
    seed: int
    show: bool = False
    decode: bool = False

    def __call__(self, worker: Worker) -> Part:
        encoder = worker.encoder(self.reader, self.seed)
        gathered = _Gathered()
        shown: Shown | None = None
        not_given_back: list[tuple[str, str]] = []
        for number, row in enumerate(_read(worker.stream(self.shard), self.rows)):
            examples = gathered.add(row, encoder)
            if self.decode and number < _DECODED_ROWS and examples and not not_given_back:
                not_given_back = list(islice(texts_not_given_back(row, encoder), 1))
            if self.show and shown is None and examples:
                shown = show(row.where, examples[0], encoder)
        return Part(gathered.rows(), gathered.counts, gathered.first_bad, shown, not_given_back)


@dataclass(frozen=True)
class CountFiles:
    """Count the rows of several shards: a task for each would take longer than small ones do."""

    tasks: Sequence[CountRows]

    def __call__(self, worker: Worker) -> list[int]:
        return [task(worker) for task in self.tasks]


@dataclass(frozen=True)
class ReadChunks:
    """Read several chunks, each of few rows."""

    tasks: Sequence[ReadRows]

    def __call__(self, worker: Worker) -> list[Part]:
        return [task(worker) for task in self.tasks]


def _read(stream: RowStream, rows: Sequence[int]) -> Iterator[Row]:
    (name,) = stream.start_positions()
    if isinstance(rows, range):
        yield from islice(stream.rows(0, {name: FilePosition(rows.start, 0)}), len(rows))
        return
    for number in rows:
        yield next(stream.rows(0, {name: FilePosition(number, 0)}))


@dataclass
class _Gathered:
    good: int = 0
    others: RowCounts = field(default_factory=RowCounts)
    first_bad: list[BadRow] = field(default_factory=list)
    columns: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in _TYPES})

    def add(self, row: Row, encoder: Encoder) -> list[Example]:
        """Encode a row and keep what is to be kept of it."""
        record = xxh3_64_intdigest(row.text.strip() or row.where.encode())
        examples: list[Example] = []
        bad = False
        try:
            encoded = encoder(row, 0)
        except BadRowError as error:
            bad = True
            self.others += RowCounts(rows=1, bad={error.reason: 1})
            if len(self.first_bad) < SHOWN:
                self.first_bad.append(error.bad_row)
        else:
            examples = encoded.examples
            if encoded.counts is GOOD_ROW:
                self.good += 1
            else:
                self.others += encoded.counts
        columns = self.columns
        columns["lines"].append(row.line)
        columns["records"].append(record)
        ids = b"".join(example.input_ids.data for example in examples)
        columns["ids"].append(xxh3_64_intdigest(ids) if examples else record)
        columns["bad"].append(bad)
        columns["num_examples"].append(len(examples))
        for example in examples:
            columns["lengths"].append(len(example.input_ids))
            columns["responses"].append(int(np.count_nonzero(example.response_mask)))
            columns["tails"].append(example.tail)
            columns["voids"].append(example.num_void)
        return examples

    @property
    def counts(self) -> RowCounts:
        return self.others + RowCounts(rows=self.good)

    def rows(self) -> Rows:
        return Rows(**{name: np.array(self.columns[name], kind) for name, kind in _TYPES.items()})
