"""A row -> the examples that its hook makes of it: checked, and cut or skipped if too long."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llada_sft.config.record_formats import RecordFormat
from llada_sft.config.sections.data import DataConfig
from llada_sft.data.examples.answer_end import NO_TAIL, AnswerEnd, answer_end_of
from llada_sft.data.examples.hook import HookFunction, describe_exception, load_hook
from llada_sft.data.examples.hook_output import check_item
from llada_sft.data.examples.parse import parse_row
from llada_sft.data.examples.pieces import Fields, Piece, is_document, split_document
from llada_sft.data.examples.quarantine import BadRowError
from llada_sft.data.examples.row_counts import GOOD_ROW, RowCounts
from llada_sft.data.examples.tokenizer import TokenIds, load_tokenizer
from llada_sft.data.records.chat_tokens import ChatLayout, set_layout
from llada_sft.data.records.formats import RecordRules
from llada_sft.data.records.normalize import RecordReader, row_key
from llada_sft.data.records.turns import NothingToLearnError
from llada_sft.data.rows.position import ExampleKey
from llada_sft.data.rows.row import Row
from llada_sft.data.sources import rules_of
from llada_sft.errors import DataError
from llada_sft.keys import hashed

TooLong = Literal["skip", "clip_prompt", "clip_response", "split"]


@dataclass(frozen=True)
class Example:
    """One training example.

    Attributes:
        input_ids: int64 [L], prompt, response and what follows it (answer_end.py).
        response_mask: bool [L], the response and the tail, without void tokens.
        noisy_ids: int64 [L] if the hook corrupts the input itself.
        loss_weights: fp32 [L], what the loss of each token is multiplied by; None if all are 1.
        tail: Tokens after the response that are learned as it is: EOS, or EOS and a cycle.
        hidden: Tokens at the end that are always masked, an EOS and void tokens; 0 without these.
        grows: True if EOS tokens may be added up to the longest example of the micro-batch.
        file, line, part: Where it comes from; together with seed and epoch they key its noise.
        epoch: In which its row was read.
        block_length: Tokens of a block, if it is trained in blocks; 0: it is not.
    """

    input_ids: NDArray[np.int64]
    response_mask: NDArray[np.bool_]
    noisy_ids: NDArray[np.int64] | None
    grows: bool
    file: str
    line: int
    part: int
    epoch: int = 0
    tail: int = 0
    loss_weights: NDArray[np.float32] | None = None
    hidden: int = 0
    block_length: int = 0

    @property
    def num_void(self) -> int:
        """Void tokens at the end."""
        return max(self.hidden - 1, 0)

    @property
    def key(self) -> ExampleKey:
        return ExampleKey(self.file, self.line, self.part, self.epoch)


@dataclass(frozen=True)
class Encoded:
    """What became of one row."""

    examples: list[Example]
    counts: RowCounts


# Makes the examples of a row in an epoch; it raises a BadRowError.
Encode = Callable[[Row, int], Encoded]


@dataclass(frozen=True)
class Encoder:
    """Runs the hook on rows.

    What is random in a row's example is keyed by (seed, epoch, file, line): the answer that is
    drawn of a conversation, and what the hook draws from Python's `random`. So a row that is read
    again, after an interruption or on another rank, becomes the same example.

    Args:
        hook: `process_data`.
        hook_path: Its file, for messages.
        tokenizer: Given to the hook.
        vocab_size: Ids must be below it.
        max_length: Tokens of an example, its tail included.
        on_too_long: What to do with a longer one.
        eos_after_cut: Whether a response that is cut gets its tail.
        mask_token_id: Must not be in a response.
        layout: Tells what is to be noticed of the texts of a row; None notices nothing.
        answer_end: Makes the tails.
        reader: Brings records into the form that the hook gets.
        seed: `run.seed`.
        random_length: The share of a document's pieces that have a random length.
    """

    hook: HookFunction
    hook_path: Path
    tokenizer: Any
    vocab_size: int
    max_length: int
    on_too_long: TooLong
    answer_end: AnswerEnd
    reader: RecordReader = RecordReader()  # noqa: RUF009 (frozen)
    seed: int = 0
    eos_after_cut: bool = False
    mask_token_id: int | None = None
    layout: ChatLayout | None = None
    random_length: float = 0.0

    def for_format(self, format: RecordFormat, rules: RecordRules) -> "Encoder":
        """Return the same encoder for rows of another format, with other names of fields."""
        return replace(self, reader=replace(self.reader, format=format, rules=rules))

    def __call__(self, row: Row, epoch: int = 0) -> Encoded:
        """Encode a row.

        Raises:
            BadRowError: The row or what the hook made of it cannot be used; names file and line.
        """
        record, key = parse_row(row), row_key(self.seed, epoch, row.file, row.line)
        try:
            unread = self._unread(record)
            counts = replace(GOOD_ROW, unread=dict.fromkeys(unread, 1)) if unread else GOOD_ROW
            record = self._read(row, record, key)
            counts = self._notice(record, counts)
            returned = self._run_hook(row, record, key)
        except NothingToLearnError:
            return Encoded([], replace(counts, not_learned=1))
        except RecursionError:
            raise BadRowError(row, "bad_record", "nested too deeply") from None
        items = returned if isinstance(returned, list) else [] if returned is None else [returned]
        checked = [self._checked(row, item) for item in items]
        examples: list[Example] = []
        clipped = skipped = 0
        pieces = (self._pieces(fields, key, number) for number, fields in enumerate(checked))
        for part, piece in enumerate(chain.from_iterable(pieces)):
            example, was_cut = self._example(row, part, epoch, piece, key)
            clipped += was_cut
            if example is None:
                skipped += 1
            else:
                examples.append(example)
        if clipped or skipped or not items:
            counts = replace(
                counts, clipped=clipped, skipped=skipped, dropped_by_hook=int(not items)
            )
        return Encoded(examples, counts)

    def _unread(self, record: object) -> set[str]:
        known = () if self.layout is None else self.layout.template().words
        return self.reader.unread(record, known)

    def _read(self, row: Row, record: object, key: int) -> object:
        try:
            return self.reader(record, key)
        except DataError as error:
            raise BadRowError(row, "bad_record", str(error)) from None

    def _notice(self, record: object, counts: RowCounts) -> RowCounts:
        """Count what is worth a look of a row: it does not make the row a bad one."""
        if self.layout is None:
            return counts
        special, rendered = self.layout.notice(record)
        if not special:
            return counts
        return replace(counts, special_tokens=1, already_rendered=int(rendered))

    def _run_hook(self, row: Row, record: object, key: int) -> object:
        random.seed(key)
        try:
            return self.hook(record, self.tokenizer, self.max_length)
        except (NothingToLearnError, KeyboardInterrupt):
            raise
        except DataError as error:
            raise BadRowError(row, "bad_record", str(error)) from None
        except BaseException as error:  # SystemExit, CancelledError, or of the user's own
            message = f"hook raised {describe_exception(error, self.hook_path)}"
            raise BadRowError(row, "hook_raised", message) from None

    def _checked(self, row: Row, item: object) -> Fields:
        try:
            fields = check_item(item, self.vocab_size, self.mask_token_id)
            self.answer_end.require_unused(fields["input_ids"], fields.get("noisy_ids"))
        except DataError as error:
            raise BadRowError(row, "hook_returned", str(error)) from None
        except Exception as error:  # a class of the user's, or a number without end
            message = f"what the hook returned raised {describe_exception(error, self.hook_path)}"
            raise BadRowError(row, "hook_returned", message) from None
        return fields

    def _pieces(self, fields: Fields, key: int, number: int) -> Iterable[Piece]:
        """Split an example of a row, the number-th, if it is a document and the config says so."""
        if self.on_too_long != "split" or not is_document(fields):
            return [Piece(fields, ends=True)]
        return split_document(
            fields,
            self.max_length,
            self.answer_end.fewest_tokens,
            self.random_length,
            hashed(key, number),
        )

    def _example(
        self, row: Row, part: int, epoch: int, piece: Piece, key: int
    ) -> tuple[Example | None, bool]:
        """Return the example, None if it is skipped for its length; and whether it was cut.

        `key` is the row's.
        """
        fields = piece.fields
        noisy, weights = fields.get("noisy_ids"), fields.get("loss_weights")
        mask = fields["response_mask"]
        # A hook that corrupts the input itself owns the whole sequence: no tail is added. And a
        # document continues after a piece that is not its last.
        tail = 0 if noisy is not None or not piece.ends else self.answer_end.fewest_tokens
        keep = _cut(mask, self.max_length - tail, self.on_too_long)
        if keep is None:
            return None, False
        was_cut = keep.stop - keep.start < len(mask)
        if was_cut and self._cuts_response(mask, keep) and not self.eos_after_cut:
            # Its end is missing: the model must not learn that it ends here.
            keep, tail = _cut(mask, self.max_length, self.on_too_long) or keep, 0
        kept = keep.stop - keep.start
        end = self.answer_end.tail(self.max_length - kept, key, part, kept) if tail else NO_TAIL
        learned = np.arange(len(end.ids)) < end.num_learned
        example = Example(
            input_ids=np.concatenate([fields["input_ids"][keep], end.ids]),
            response_mask=np.concatenate([mask[keep], learned]),
            noisy_ids=None if noisy is None else noisy[keep],
            loss_weights=None if weights is None else _with_last(weights[keep], len(end.ids)),
            tail=end.num_learned,
            hidden=end.num_hidden,
            grows=tail > 0 and self.answer_end.grows,
            file=row.file,
            line=row.line,
            part=part,
            epoch=epoch,
            block_length=self.answer_end.block_length,
        )
        return example, was_cut

    def _cuts_response(self, mask: NDArray[np.bool_], keep: slice) -> bool:
        """Return whether an example that is cut there ends within a response."""
        return bool(mask[keep.stop - 1] and keep.stop < len(mask) and mask[keep.stop])


def _with_last(weights: NDArray[np.float32], more: int) -> NDArray[np.float32]:
    """Give what follows a response the weight of its last token."""
    return np.concatenate([weights, np.repeat(weights[-1:], more)])


def _cut(mask: NDArray[np.bool_], room: int, policy: TooLong) -> slice | None:
    """Return which part of an example stays; None skips it.

    `clip_prompt` cuts at the start, `clip_response` and `split` at the end; an example that would
    lose its whole response is skipped. A prompt whose response is cut off is cut off with it.
    """
    if len(mask) <= room:
        return slice(0, len(mask))
    begin = len(mask) - room if policy == "clip_prompt" else 0
    learned = np.flatnonzero(mask[begin : begin + max(room, 0)])
    if policy == "skip" or len(learned) == 0:
        return None
    return slice(begin, len(mask) if policy == "clip_prompt" else int(learned[-1]) + 1)


def build_encoder(config: DataConfig, tokenizer_dir: Path, ids: TokenIds, seed: int = 0) -> Encoder:
    """Load hook and tokenizer.

    Args:
        config: The data section; with `format: auto` each row is of the format it looks like.
        tokenizer_dir: The folder of the tokenizer.
        ids: Special tokens and vocabulary.
        seed: Keys what is random in a row's example; 0 for validation, which all runs share.

    Raises:
        DataError: One of them cannot be used.
        ConfigError: The tokens that `data.end` puts after answers cannot be.
    """
    tokenizer = load_tokenizer(tokenizer_dir, ids.mask_token_id, ids.chat_template)
    layout = None
    if tokenizer is not None:
        mask_token = tokenizer.convert_ids_to_tokens(ids.mask_token_id)
        layout = ChatLayout(tokenizer, config.special_tokens_in_text, mask_token)
        set_layout(tokenizer, layout)
        try:
            layout.template()
        except DataError as error:
            raise DataError(f"{tokenizer_dir}: {error}") from None
    return Encoder(
        hook=load_hook(Path(config.hook)),
        hook_path=Path(config.hook),
        tokenizer=tokenizer,
        vocab_size=ids.vocab_size,
        max_length=config.max_length,
        on_too_long=config.on_too_long,
        answer_end=answer_end_of(config, ids, tokenizer),
        reader=RecordReader(config.format, rules_of(config), config.multi_turn),
        seed=seed,
        eos_after_cut=config.eos_after_cut,
        mask_token_id=ids.mask_token_id,
        layout=layout,
        random_length=config.random_length,
    )
