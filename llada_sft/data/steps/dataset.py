"""A rank's optimizer steps, one after another, each with the position of what it holds.

`StepDataset` is what a background process runs: rows -> examples -> micro-batches, through every
epoch. The position travels inside the step, so it is the position of what was *trained*, not of
what was prepared ahead. Ranks run out of rows at different times: a rank says so by an empty step
with `end_of_epoch`, and training/ decides, for all ranks together, when an epoch is over.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from torch.utils.data import IterableDataset

from llada_sft.config.schema import DataConfig
from llada_sft.data.examples.encode import Encoder, Example
from llada_sft.data.examples.hook import load_hook
from llada_sft.data.examples.quarantine import BadRowError, Quarantine
from llada_sft.data.examples.row_counts import RowCounts
from llada_sft.data.examples.tokenizer import load_tokenizer
from llada_sft.data.records.normalize import RecordReader
from llada_sft.data.rows.shard_reader import Row
from llada_sft.data.rows.stream import FilePosition, RowStream
from llada_sft.data.sources import Source
from llada_sft.data.steps.collate import CleanBatch, pad
from llada_sft.data.steps.mixture import MixedRows, SourceRows
from llada_sft.data.steps.one_epoch import EpochRows
from llada_sft.data.steps.packing import micro_batches, with_waiting
from llada_sft.data.steps.yields import RowsLeft, RowYield, StepEstimate, sample_yield

Positions = dict[str, FilePosition]


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
        rows_done, epoch_rows: Rows of the epoch that are done, and that there are on this rank;
            where sources are mixed, of all of their epochs.
        by_source: What each of these gave to the step, in the unit of `data.mix_by`.
        steps_left: Steps of the epoch that this rank makes after this one: an estimate, which is 0
            if and only if no example follows.
        epoch_steps: Steps that a whole epoch makes on this rank, estimated; 0 where sources are
            mixed, which have one epoch together.
        yields: For each source, what its rows make: the base of the estimates.
        estimated: Whether the number of steps cannot be known from the rows alone.
    """

    micro_batches: tuple[CleanBatch, ...]
    epoch: int
    positions: Positions
    end_of_epoch: bool = False
    rows: RowCounts = field(default_factory=RowCounts)
    rows_done: int = 0
    epoch_rows: int = 0
    by_source: tuple[int, ...] = ()
    steps_left: int = 0
    epoch_steps: int = 0
    yields: tuple[RowYield, ...] = ()
    estimated: bool = False

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
        sources: The rank's part of each: one dataset without a name, or all that are mixed.
        seed: Keys the order of rows.
        size: Micro-batch size and accumulation.
        epoch: The epoch to begin in.
        positions: Where to begin in it, perhaps with files of other ranks; None is its start.
        quarantine: The file that bad rows are written to, if any.
    """

    # Without `know_yields`, each row counts as one example.
    _yields: Sequence[RowYield] | None = None
    _sample_rows = 0

    def __init__(
        self,
        config: DataConfig,
        tokenizer_dir: Path,
        ids: TokenIds,
        sources: Sequence[Source],
        seed: int,
        size: StepSize,
        epoch: int = 0,
        positions: Positions | None = None,
        quarantine: Path | None = None,
    ) -> None:
        self._config, self._tokenizer_dir, self._ids = config, tokenizer_dir, ids
        self._seed, self._size, self._quarantine = seed, size, quarantine
        self._epoch, self._positions = epoch, positions
        self._sources = [
            (source, RowStream(source.shards, seed, config.shuffle, config.cache_dir))
            for source in sources
        ]
        # Each has epochs of its own; otherwise those of the one dataset are the run's.
        self.mixed_sources = tuple(source.name for source in sources if source.name)
        # Rows that wait and must be encoded again, as their examples changed: file, line and epoch.
        self._again: set[tuple[str, int, int]] = set()

    @property
    def sources(self) -> list[Source]:
        return [source for source, _ in self._sources]

    @property
    def num_rows(self) -> int:
        return sum(stream.num_rows for _, stream in self._sources)

    def fingerprints(self) -> dict[str, str]:
        """Give the fingerprint of each of the rank's files, by its name."""
        return {name: one for _, rows in self._sources for name, one in rows.fingerprints().items()}

    def start_positions(self) -> Positions:
        """Say where all of the rank's files begin."""
        return {
            name: at for _, rows in self._sources for name, at in rows.start_positions().items()
        }

    def begin_anew(self, names: Iterable[str]) -> None:
        """Read files from the beginning of the epoch on, whatever of them is done or waits."""
        positions = dict(self._positions or {})
        for name in names:
            at = positions.get(name, FilePosition(0, 0))
            positions[name] = at.at_epoch(at.epoch)._replace(pending=())
        self._positions = positions

    def know_yields(self, yields: Sequence[RowYield] | None, sample_rows: int) -> None:
        """Set what rows make, from a checkpoint, or how many rows to sample for it."""
        self._yields, self._sample_rows = yields, sample_rows

    def encode_again(self) -> int:
        """Let rows that are half done start again, because their examples have changed.

        These are rows of which some examples were given, or wait to be packed. All of their new
        examples come first; all other rows before the positions stay done.

        Returns:
            The number of these rows on this rank.
        """
        if self._positions is None:
            return 0
        positions = dict(self._positions)
        again: set[tuple[str, int, int]] = set()
        for source, stream in self._sources:
            for name in stream.fingerprints().keys() & positions.keys():
                at = positions[name]
                row = stream.half_done(name, at, at.epoch if source.name else self._epoch)
                if row is not None:
                    at = at._replace(row=at.row + 1, part=0, pending=(*at.pending, row))
                    positions[name] = at
                again |= {(name, one.line, one.epoch) for one in at.pending}
        self._positions, self._again = positions, again
        return len(again)

    def __iter__(self) -> Iterator[LocalStep]:
        encoder = self._encoder()
        estimate = self._estimate(encoder)
        begins = [self._begin(source, stream) for source, stream in self._sources]
        quarantines = [
            self._quarantine_of(stream, positions)
            for (_, stream), positions in zip(self._sources, begins, strict=True)
        ]
        waiting = self._waiting(encoder, quarantines)
        if self.mixed_sources:
            parts = zip(self._sources, quarantines, begins, strict=True)
            rows = MixedRows(
                [
                    SourceRows(
                        source.weight,
                        source.epochs,
                        stream,
                        _for_source(encoder, source),
                        quarantine,
                        positions,
                    )
                    for (source, stream), quarantine, positions in parts
                ],
                self._config.mix_by,
            )
            yield from self._steps(rows, waiting, estimate)
            return
        ((source, stream),) = self._sources
        encoder = _for_source(encoder, source)
        (positions,), (quarantine,) = begins, quarantines
        for epoch in range(self._epoch, source.epochs):
            yield from self._steps(
                EpochRows(stream, encoder, quarantine, epoch, positions), waiting, estimate
            )
            positions, waiting = stream.start_positions(epoch + 1), []

    def _begin(self, source: Source, stream: RowStream) -> Positions:
        """Say what is read of a source's files where this run begins."""
        if self._positions is None:
            return stream.start_positions()
        of_source = {name: at for name, at in self._positions.items() if source.owns(name)}
        known = stream.known_positions(of_source)
        return {name: at._replace(pending=()) for name, at in known.items()}

    def _quarantine_of(self, stream: RowStream, positions: Positions) -> Quarantine:
        return Quarantine(
            self._quarantine,
            self._config.max_bad_fraction,
            stream.fingerprints(),
            positions,
            stream.shown_paths,
        )

    def _steps(
        self, rows: EpochRows | MixedRows, waiting: list[Example], estimate: StepEstimate
    ) -> Iterator[LocalStep]:
        batches = micro_batches(
            self._config,
            self._size.micro_batch_size,
            self._ids.eos_token_id,
            waiting,
            rows.examples(),
        )
        some = tuple(islice(batches, self._size.accumulate_grad_batches))
        while some:
            step = self._step(some, rows, waiting, estimate)
            # Whether another step follows is known only once it is read. An error is raised when
            # that step is due.
            error: Exception | None = None
            try:
                some = tuple(islice(batches, self._size.accumulate_grad_batches))
            except Exception as caught:
                error = caught
            more = bool(some) or error is not None
            yield replace(step, steps_left=max(1, step.steps_left) if more else 0)
            if error is not None:
                raise error
        yield replace(self._step((), rows, waiting, estimate), steps_left=0, end_of_epoch=True)

    def _step(
        self,
        batches: tuple[CleanBatch, ...],
        rows: EpochRows | MixedRows,
        waiting: Sequence[Example],
        estimate: StepEstimate,
    ) -> LocalStep:
        missing = self._size.accumulate_grad_batches - len(batches)
        return LocalStep(
            batches + (pad([], self._ids.eos_token_id),) * missing,
            rows.epoch,
            with_waiting(rows.positions, waiting),
            rows=rows.take_counts(),
            rows_done=rows.rows_done,
            epoch_rows=rows.num_rows,
            by_source=self._by_source(batches),
            steps_left=estimate.steps(rows.left, len(waiting)),
            epoch_steps=0 if self.mixed_sources else estimate.steps([RowsLeft(rows.num_rows)]),
            yields=estimate.yields,
            estimated=not estimate.is_exact,
        )

    def _by_source(self, batches: Iterable[CleanBatch]) -> tuple[int, ...]:
        given: Counter[str] = Counter()
        for example in (example for batch in batches for example in batch.examples):
            source = example.file.partition("/")[0]
            given[source] += len(example.input_ids) if self._config.mix_by == "tokens" else 1
        return tuple(given[source] for source in self.mixed_sources)

    def _encoder(self) -> Encoder:
        return build_encoder(self._config, self._tokenizer_dir, self._ids, self._seed)

    def _waiting(self, encoder: Encoder, quarantines: Sequence[Quarantine]) -> list[Example]:
        """Read the examples again that were read, but not trained."""
        pending = [
            (one, row, _for_source(encoder, source), quarantine)
            for (source, stream), quarantine in zip(self._sources, quarantines, strict=True)
            for one, row in stream.pending_rows(self._positions or {})
        ]
        # Those of several ranks have the same places: then the files' order decides.
        pending.sort(key=lambda each: each[0].place)
        waiting: list[Example] = []
        begun: set[tuple[str, int, int]] = set()
        for one, row, encode, quarantine in pending:
            key = (row.file, row.line, one.epoch)
            if key not in self._again:
                examples = encode(row, one.epoch).examples
                waiting += [example for example in examples if example.part == one.part]
            elif key not in begun:
                begun.add(key)
                waiting += _encode_again(row, one.epoch, encode, quarantine)
        return waiting

    def _estimate(self, encoder: Encoder) -> StepEstimate:
        """Return how to estimate steps from rows: by a checkpoint's yields, or by a sample."""
        if self._yields is None:
            # If no row of the sample makes an example: one of the largest length for each row.
            one_each = RowYield(1, 1, self._config.max_length)
            self._yields = [
                sample_yield(stream, _for_source(encoder, source), self._sample_rows) or one_each
                for source, stream in self._sources
            ]
        max_tokens, accumulate = self._config.max_tokens, self._size.accumulate_grad_batches
        return StepEstimate(
            tuple(self._yields),
            self._size.examples,
            None if max_tokens is None else max_tokens * accumulate,
        )


def _encode_again(row: Row, epoch: int, encode: Encoder, quarantine: Quarantine) -> list[Example]:
    """Encode a row whose examples have changed: it may be a bad row now."""
    try:
        return encode(row, epoch).examples
    except BadRowError as error:
        # Row 0: it lies before the position, as all rows that wait.
        quarantine.add(error, epoch, row=0)
        return []


def _for_source(encoder: Encoder, source: Source) -> Encoder:
    reader = replace(encoder.reader, format=source.format, fields=source.fields)
    return replace(encoder, reader=reader)
