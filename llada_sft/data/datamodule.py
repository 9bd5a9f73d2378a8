"""A rank's optimizer steps, one after another, each with the position of what it holds.

`StepDataset` is what a background process runs: rows -> examples -> micro-batches, through every
epoch. The position travels inside the step, so it is the position of what was *trained*, not of
what was prepared ahead. Ranks run out of rows at different times: a rank says so by an empty step
with `end_of_epoch`, and training/ decides, for all ranks together, when an epoch is over.
"""

import atexit
import signal
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from torch.utils.data import DataLoader, IterableDataset

from llada_sft.config.schema import DataConfig
from llada_sft.data.collate import CleanBatch, pad
from llada_sft.data.counts import RowCounts
from llada_sft.data.encode import Encoder, Example
from llada_sft.data.epoch_rows import EpochRows
from llada_sft.data.files import Shard
from llada_sft.data.hook import load_hook
from llada_sft.data.packing import micro_batches, with_waiting
from llada_sft.data.quarantine import Quarantine
from llada_sft.data.record_reader import RecordReader
from llada_sft.data.shards import list_shards, shard_root
from llada_sft.data.stream import FilePosition, RowStream
from llada_sft.data.tokenizer import load_tokenizer
from llada_sft.errors import DataError, LladaSftError

Positions = dict[str, FilePosition]
# Rows whose tokens tell how many steps an epoch of packed micro-batches makes.
_SAMPLE_ROWS = 512


@dataclass(frozen=True)
class LocalStep:
    """What one rank gives to one optimizer step.

    Attributes:
        micro_batches: Always `accumulate_grad_batches` of them; some may be empty of examples.
        epoch: The epoch that the rows belong to, from 0.
        positions: For each file of the rank, what is done once this step is trained, and what
            waits to be packed.
        end_of_epoch: There are no rows left; the step holds none.
        rows: What became of the rows that were read since the step before.
        epoch_rows: All rows of the rank's files.
    """

    micro_batches: tuple[CleanBatch, ...]
    epoch: int
    positions: Positions
    end_of_epoch: bool = False
    rows: RowCounts = field(default_factory=RowCounts)
    epoch_rows: int = 0

    @property
    def num_examples(self) -> int:
        return sum(len(batch.examples) for batch in self.micro_batches)

    @property
    def num_response_tokens(self) -> int:
        return sum(int(batch.response_mask.sum()) for batch in self.micro_batches)

    @property
    def num_tokens(self) -> int:
        return sum(batch.num_tokens for batch in self.micro_batches if batch.examples)

    @property
    def num_positions(self) -> int:
        """All tokens that the network runs on, padding and empty micro-batches among them."""
        return sum(int(batch.input_ids.size) for batch in self.micro_batches)

    @property
    def rows_done(self) -> int:
        return sum(at.row for at in self.positions.values())


@dataclass(frozen=True)
class StepSize:
    micro_batch_size: int
    accumulate_grad_batches: int

    @property
    def examples(self) -> int:
        return self.micro_batch_size * self.accumulate_grad_batches


@dataclass(frozen=True)
class TokenIds:
    """What data needs to know of the model."""

    vocab_size: int
    eos_token_id: int
    mask_token_id: int


def build_encoder(config: DataConfig, tokenizer_dir: Path, ids: TokenIds, seed: int = 0) -> Encoder:
    """Load hook and tokenizer.

    Args:
        config: The data section; with `format: auto` each row is of the format it looks like.
        tokenizer_dir: Where the tokenizer lies.
        ids: Special tokens and vocabulary.
        seed: Keys what is random in a row's example; 0 for validation, which all runs share.

    Raises:
        DataError: One of them cannot be used.
    """
    return Encoder(
        hook=load_hook(Path(config.hook)),
        hook_path=Path(config.hook),
        tokenizer=load_tokenizer(tokenizer_dir, ids.mask_token_id),
        vocab_size=ids.vocab_size,
        max_length=config.max_length,
        on_too_long=config.on_too_long,
        eos_token_id=ids.eos_token_id,
        eos_tail=config.eos_tail,
        reader=RecordReader(config.format, config.fields, config.multi_turn),
        seed=seed,
    )


class StepDataset(IterableDataset[LocalStep]):
    """The steps of one rank from a position on, through all epochs.

    Args:
        config: The data section.
        tokenizer_dir: Where the tokenizer lies.
        ids: Special tokens and vocabulary.
        files: The rank's shards.
        seed: Keys the order of rows.
        size: Micro-batch size and accumulation.
        epochs: Stop after this many.
        epoch: The epoch to begin in.
        positions: Where to begin in it, perhaps with files of other ranks; None is its start.
        quarantine: The file that bad rows are written to, if any.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer_dir: Path,
        ids: TokenIds,
        files: Sequence[Shard],
        seed: int,
        size: StepSize,
        epochs: int,
        epoch: int = 0,
        positions: Mapping[str, FilePosition] | None = None,
        quarantine: Path | None = None,
    ) -> None:
        self._root, self._quarantine = shard_root(config.train), quarantine
        self.stream = RowStream(files, self._root, seed, config.shuffle, config.cache_dir)
        self._config, self._tokenizer_dir, self._ids = config, tokenizer_dir, ids
        self._seed = seed
        self._size, self._epochs = size, epochs
        self._epoch, self._positions = epoch, positions

    def begin_anew(self, names: Iterable[str]) -> None:
        """Read files from the beginning of the epoch on, whatever of them is done or waits."""
        anew = dict.fromkeys(names, FilePosition(0, 0))
        self._positions = {**(self._positions or {}), **anew}

    def __iter__(self) -> Iterator[LocalStep]:
        encoder = self._encoder()
        positions = self.stream.start_positions()
        if self._positions is not None:
            # Of this rank's files alone: what it said of another's would be out of date.
            positions = self.stream.known_positions(self._positions)
        quarantine = Quarantine(
            self._quarantine,
            self._config.max_bad_fraction,
            self.stream.fingerprints(),
            self._epoch,
            positions,
            self._root,
        )
        for epoch in range(self._epoch, self._epochs):
            waiting = self._waiting(encoder, epoch, positions)
            read = {name: at._replace(pending=()) for name, at in positions.items()}
            rows = EpochRows(self.stream, encoder, quarantine, epoch, read)
            yield from self._epoch_steps(rows, waiting)
            positions = self.stream.start_positions()

    def _epoch_steps(self, rows: EpochRows, waiting: list[Example]) -> Iterator[LocalStep]:
        batches = micro_batches(
            self._config,
            self._size.micro_batch_size,
            self._ids.eos_token_id,
            waiting,
            rows.examples(),
        )
        while some := tuple(islice(batches, self._size.accumulate_grad_batches)):
            yield self._step(some, rows, waiting)
        yield self._step((), rows, waiting, end_of_epoch=True)

    def _encoder(self) -> Encoder:
        return build_encoder(self._config, self._tokenizer_dir, self._ids, self._seed)

    def _waiting(self, encoder: Encoder, epoch: int, positions: Positions) -> list[Example]:
        """Read the examples again that were read, but not trained."""
        return [
            example
            for row, part in self.stream.pending_rows(positions)
            for example in encoder(row, epoch).examples
            if example.part == part
        ]

    def _step(
        self,
        batches: tuple[CleanBatch, ...],
        rows: EpochRows,
        waiting: Sequence[Example],
        end_of_epoch: bool = False,
    ) -> LocalStep:
        missing = self._size.accumulate_grad_batches - len(batches)
        return LocalStep(
            batches + (pad([], self._ids.eos_token_id),) * missing,
            rows.epoch,
            with_waiting(rows.positions, waiting),
            end_of_epoch,
            rows.take_counts(),
            self.stream.num_rows,
        )

    def steps_per_epoch(self) -> int:
        """Count the steps of an epoch as if each row made one example; packed: estimate them."""
        num_rows = self.stream.num_rows
        if self._config.max_tokens is None:
            return -(-num_rows // self._size.examples)
        sample = min(num_rows, _SAMPLE_ROWS)
        num_tokens = -(-self._count_tokens(sample) * num_rows // max(1, sample))
        return -(-num_tokens // (self._config.max_tokens * self._size.accumulate_grad_batches))

    def _count_tokens(self, num_rows: int) -> int:
        """Count the tokens that the first rows of the first epoch make."""
        encoder = self._encoder()
        num_tokens = 0
        for row in islice(self.stream.rows(0, self.stream.start_positions()), num_rows):
            # A row that cannot be used is named where it is trained.
            with suppress(DataError):
                num_tokens += sum(len(example.input_ids) for example in encoder(row).examples)
        return num_tokens


def _ignore_job_signals(_worker: int) -> None:
    # SLURM sends the job's signals to every process of the step; only the rank may act on them.
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class _ErrorsAsItems(IterableDataset[LocalStep | LladaSftError]):
    """A dataset whose last item may be its error: DataLoader would add a traceback to the line."""

    def __init__(self, dataset: StepDataset) -> None:
        self._dataset = dataset

    def __iter__(self) -> Iterator[LocalStep | LladaSftError]:
        try:
            yield from self._dataset
        except LladaSftError as error:
            yield error


class _BackgroundSteps(Iterable[LocalStep]):
    """The steps of a dataset, prepared ahead by one other process."""

    def __init__(self, dataset: StepDataset, prefetch_steps: int) -> None:
        self._loader = DataLoader(
            _ErrorsAsItems(dataset),
            batch_size=None,
            num_workers=1,
            prefetch_factor=prefetch_steps,
            # fork would copy the threads' locks of a process that runs gloo and CUDA
            multiprocessing_context="spawn",
            worker_init_fn=_ignore_job_signals,
        )

    def __iter__(self) -> Iterator[LocalStep]:
        steps = _steps_or_error(iter(self._loader))
        # The process ignores TERM: at exit, Python would send that and wait for it for ever.
        atexit.register(steps.close)
        return steps


def _steps_or_error(
    items: Iterator[LocalStep | LladaSftError],
) -> Generator[LocalStep, None, None]:
    try:
        for item in items:
            if isinstance(item, LladaSftError):
                raise item
            yield item
    finally:
        # The last reference, also where an exception keeps this frame: the process ends with it.
        del items


def step_loader(dataset: StepDataset, prefetch_steps: int) -> Iterable[LocalStep]:
    """Prepare steps in one background process, or in this one if `prefetch_steps` is 0."""
    return dataset if prefetch_steps == 0 else _BackgroundSteps(dataset, prefetch_steps)


def validation_batches(
    config: DataConfig,
    encoder: Encoder,
    rank: int,
    world_size: int,
    micro_batch_size: int,
    max_rows: int,
) -> list[CleanBatch]:
    """Encode this rank's validation rows: every world_size-th of the first `max_rows`."""
    assert config.validation is not None
    files = list_shards(config.validation)
    root = shard_root(config.validation)
    stream = RowStream(files, root, seed=0, shuffle=False, cache_dir=config.cache_dir)
    examples: list[Example] = []
    for number, row in enumerate(stream.rows(0, stream.start_positions())):
        if number >= max_rows:
            break
        if number % world_size == rank:
            examples.extend(encoder(row).examples)
    return list(micro_batches(config, micro_batch_size, encoder.eos_token_id, [], iter(examples)))
