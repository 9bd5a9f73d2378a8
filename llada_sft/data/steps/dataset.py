"""A rank's optimizer steps, one after another, each with the position of what it holds.

`StepDataset` is what a background process runs: rows -> examples -> micro-batches, through every
epoch. The position travels inside the step, so it is the position of what was *trained*, not of
what was prepared ahead. Ranks run out of rows at different times: a rank says so by an empty step
with `end_of_epoch`, and training/ decides, for all ranks together, when an epoch is over.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from llada_sft.config.sections.data import DataConfig
from llada_sft.data.examples.encode import Encode, Example, build_encoder
from llada_sft.data.examples.quarantine import BadRowError, Quarantine
from llada_sft.data.examples.tokenizer import TokenIds
from llada_sft.data.rows.position import Positions, restart_files, with_waiting
from llada_sft.data.rows.row import Row
from llada_sft.data.rows.stream import RowStream
from llada_sft.data.sources import Source
from llada_sft.data.steps.collate import UnmaskedBatch, pad
from llada_sft.data.steps.local_step import LocalStep, StepSize
from llada_sft.data.steps.mixture import MixedRows, SourceRows
from llada_sft.data.steps.one_epoch import EpochRows
from llada_sft.data.steps.packing import costliest_first, micro_batches
from llada_sft.data.steps.yields import RowsLeft, RowYield, StepEstimate, sample_yield


class StepDataset(Iterable[LocalStep]):
    """The steps of one rank from a position on, through all epochs.

    Args:
        config: The data section.
        tokenizer_dir: The folder of the tokenizer.
        ids: Special tokens and vocabulary.
        sources: The rank's part of each: one dataset without a name, or all that are mixed.
        seed: Keys the order of rows.
        size: Micro-batch size and accumulation.
        epoch: The epoch to start in.
        positions: Where to start in it, perhaps with files of other ranks; None is its start.
        quarantine: The file that bad rows are written to, if any.
        encode: Makes the examples of a row in an epoch; None is the config's hook and tokenizer,
            which are loaded by the process that reads.
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
        encode: Encode | None = None,
    ) -> None:
        self._encode = encode
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
        """Return the fingerprint of each of the rank's files, by its name."""
        return {
            name: fingerprint
            for _, rows in self._sources
            for name, fingerprint in rows.fingerprints().items()
        }

    def start_positions(self) -> Positions:
        """Return where all of the rank's files start."""
        return {
            name: position
            for _, rows in self._sources
            for name, position in rows.start_positions().items()
        }

    def restart_files(self, names: Iterable[str]) -> None:
        """Read files from the start of their epoch, whatever of them is done or waits."""
        self._positions = restart_files(self._positions or {}, names)

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
                position = positions[name]
                row = stream.half_done(
                    name, position, position.epoch if source.name else self._epoch
                )
                if row is not None:
                    position = position._replace(
                        row=position.row + 1, part=0, pending=(*position.pending, row)
                    )
                    positions[name] = position
                again |= {(name, pending.line, pending.epoch) for pending in position.pending}
        self._positions, self._again = positions, again
        return len(again)

    def __iter__(self) -> Iterator[LocalStep]:
        encoders = self._encoders()
        estimate = self._estimate(encoders)
        starts = [self._start(source, stream) for source, stream in self._sources]
        quarantines = [
            self._quarantine_of(stream, positions)
            for (_, stream), positions in zip(self._sources, starts, strict=True)
        ]
        waiting = self._waiting(encoders, quarantines)
        if self.mixed_sources:
            parts = zip(self._sources, encoders, quarantines, starts, strict=True)
            rows = MixedRows(
                [
                    SourceRows(
                        weight=source.weight,
                        epochs=source.epochs,
                        stream=stream,
                        encode=encode,
                        quarantine=quarantine,
                        positions=positions,
                    )
                    for (source, stream), encode, quarantine, positions in parts
                ],
                self._config.mix_by,
            )
            yield from self._steps(rows, waiting, estimate)
            return
        ((source, stream),) = self._sources
        (encode,), (positions,), (quarantine,) = encoders, starts, quarantines
        for epoch in range(self._epoch, source.epochs):
            yield from self._steps(
                EpochRows(stream, encode, quarantine, epoch, positions), waiting, estimate
            )
            positions, waiting = stream.start_positions(epoch + 1), []

    def _encoders(self) -> list[Encode]:
        """Return what makes the examples of each source's rows."""
        if self._encode is not None:
            return [self._encode] * len(self._sources)
        encoder = build_encoder(self._config, self._tokenizer_dir, self._ids, self._seed)
        return [encoder.for_format(source.format, source.rules) for source, _ in self._sources]

    def _start(self, source: Source, stream: RowStream) -> Positions:
        """Return what is read of a source's files where this run starts."""
        if self._positions is None:
            return stream.start_positions()
        of_source = {
            name: position for name, position in self._positions.items() if source.owns(name)
        }
        known = stream.fill_missing_positions(of_source)
        return {name: position._replace(pending=()) for name, position in known.items()}

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
        positions = _StepPositions(rows, waiting)
        group = tuple(islice(batches, self._size.accumulate_grad_batches))
        while group:
            step = self._step(group, rows, positions, estimate)
            # Whether another step follows is known only once it is read. An error is raised when
            # that step is due.
            error: Exception | None = None
            try:
                group = tuple(islice(batches, self._size.accumulate_grad_batches))
            except Exception as caught:
                error = caught
            more = bool(group) or error is not None
            yield replace(step, steps_left=max(1, step.steps_left) if more else 0)
            if error is not None:
                raise error
        yield replace(self._step((), rows, positions, estimate), steps_left=0, end_of_epoch=True)

    def _step(
        self,
        batches: tuple[UnmaskedBatch, ...],
        rows: EpochRows | MixedRows,
        positions: "_StepPositions",
        estimate: StepEstimate,
    ) -> LocalStep:
        missing = self._size.accumulate_grad_batches - len(batches)
        if self._config.sorts_steps:
            batches = costliest_first(batches)
        return LocalStep(
            batches + (pad([], self._ids.eos_token_id),) * missing,
            rows.epoch,
            positions.take_moved(),
            rows=rows.take_counts(),
            rows_done=rows.rows_done,
            epoch_rows=rows.num_rows,
            by_source=self._by_source(batches),
            steps_left=estimate.steps(rows.left, positions.num_waiting),
            epoch_steps=0 if self.mixed_sources else estimate.steps([RowsLeft(rows.num_rows)]),
            yields=estimate.yields,
            estimated=not estimate.is_exact,
        )

    def _by_source(self, batches: Iterable[UnmaskedBatch]) -> tuple[int, ...]:
        given: Counter[str] = Counter()
        for batch in batches:
            for key, length in zip(batch.keys, batch.lengths, strict=True):
                source = key.file.partition("/")[0]
                given[source] += length if self._config.mix_by == "tokens" else 1
        return tuple(given[source] for source in self.mixed_sources)

    def _waiting(
        self, encoders: Sequence[Encode], quarantines: Sequence[Quarantine]
    ) -> list[Example]:
        """Read the examples again that were read, but not trained."""
        pending = [
            (example, row, encode, quarantine)
            for (_, stream), encode, quarantine in zip(
                self._sources, encoders, quarantines, strict=True
            )
            for example, row in stream.pending_rows(self._positions or {})
        ]
        # Those of several ranks have the same places: then the files' order decides.
        pending.sort(key=lambda each: each[0].place)
        waiting: list[Example] = []
        encoded_again: set[tuple[str, int, int]] = set()
        for example, row, encode, quarantine in pending:
            key = (row.file, row.line, example.epoch)
            if key not in self._again:
                parts = encode(row, example.epoch).examples
                waiting += [part for part in parts if part.part == example.part]
            elif key not in encoded_again:
                encoded_again.add(key)
                waiting += _encode_again(row, example.epoch, encode, quarantine)
        return waiting

    def _estimate(self, encoders: Sequence[Encode]) -> StepEstimate:
        """Return how to estimate steps from rows: by a checkpoint's yields, or by a sample."""
        if self._yields is None:
            # If no row of the sample makes an example: one of the largest length for each row.
            one_each = RowYield(1, 1, self._config.max_length)
            self._yields = [
                sample_yield(stream, encode, self._sample_rows) or one_each
                for (_, stream), encode in zip(self._sources, encoders, strict=True)
            ]
        max_tokens, accumulate = self._config.max_tokens, self._size.accumulate_grad_batches
        return StepEstimate(
            tuple(self._yields),
            self._size.examples,
            None if max_tokens is None else max_tokens * accumulate,
        )


class _StepPositions:
    """The positions that change from one step to the next.

    Args:
        rows: Knows what is read.
        waiting: Examples that were read, but wait; whoever packs changes it.
    """

    def __init__(self, rows: EpochRows | MixedRows, waiting: Sequence[Example]) -> None:
        self._rows, self._waiting = rows, waiting
        self._waited = set[str]()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def take_moved(self) -> Positions:
        """Return the positions of the files of which they differ from those of the step before."""
        moved = self._rows.take_moved()
        # What waits now was read since, or waited before; then its place may be another.
        for file in self._waited - moved.keys():
            moved[file] = self._rows.position(file)
        self._waited = {example.file for example in self._waiting}
        return with_waiting(moved, self._waiting)


def _encode_again(row: Row, epoch: int, encode: Encode, quarantine: Quarantine) -> list[Example]:
    """Encode a row whose examples have changed: it may be a bad row now."""
    try:
        return encode(row, epoch).examples
    except BadRowError as error:
        # Row 0: it precedes the position, as all rows that wait do.
        quarantine.add(error, epoch, row=0)
        return []
