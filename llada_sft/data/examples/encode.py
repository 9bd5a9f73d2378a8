"""A row -> the examples that its hook makes of it: checked, and cut or skipped if too long."""

import random
from array import array
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from llada_sft.config.record_formats import RecordFormat
from llada_sft.config.schema import DataConfig, shortest_tail
from llada_sft.data.examples.hook import HookFunction, describe_exception, load_hook
from llada_sft.data.examples.quarantine import BadRowError
from llada_sft.data.examples.row_counts import RowCounts
from llada_sft.data.examples.tokenizer import TokenIds, load_tokenizer
from llada_sft.data.records.normalize import RecordReader, row_key
from llada_sft.data.rows.bad_row import nul_byte, too_long_line
from llada_sft.data.rows.position import ExampleKey
from llada_sft.data.rows.row import Row
from llada_sft.data.storage.files import BYTE_ORDER_MARK
from llada_sft.errors import DataError

TooLong = Literal["skip", "clip_prompt", "clip_response"]
_REQUIRED = {"input_ids", "response_mask"}
_ALLOWED = _REQUIRED | {"noisy_ids"}
_TRUTH = bool | int | np.bool_ | np.integer


@dataclass(frozen=True)
class Example:
    """One training example.

    Attributes:
        input_ids: int64 [L], prompt, response and the EOS tail.
        response_mask: bool [L].
        noisy_ids: int64 [L] if the hook corrupts the input itself.
        grows: True if EOS tokens may be added up to the longest example of the micro-batch.
        file, line, part: Where it comes from; together with seed and epoch they key its noise.
        epoch: In which its row was read.
    """

    input_ids: NDArray[np.int64]
    response_mask: NDArray[np.bool_]
    noisy_ids: NDArray[np.int64] | None
    grows: bool
    file: str
    line: int
    part: int
    epoch: int = 0

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
        max_length: Tokens of an example, EOS tail included.
        on_too_long: What to do with a longer one.
        eos_token_id: The token of the tail.
        eos_tail: Tokens of the tail, or `batch_max`.
        reader: Brings records into the form that the hook gets.
        seed: `run.seed`.
    """

    hook: HookFunction
    hook_path: Path
    tokenizer: Any
    vocab_size: int
    max_length: int
    on_too_long: TooLong
    eos_token_id: int
    eos_tail: int | Literal["batch_max"]
    reader: RecordReader = RecordReader()  # noqa: RUF009 (frozen)
    seed: int = 0

    @property
    def tail(self) -> int:
        """Tokens of the EOS tail of an example alone, before it shares a micro-batch."""
        return shortest_tail(self.eos_tail)

    def for_format(self, format: RecordFormat, fields: Mapping[str, str]) -> "Encoder":
        """Return the same encoder for rows of another format, with other names of fields."""
        return replace(self, reader=replace(self.reader, format=format, fields=fields))

    def __call__(self, row: Row, epoch: int = 0) -> Encoded:
        """Encode a row.

        Raises:
            BadRowError: The row or what the hook made of it cannot be used; names file and line.
        """
        returned = self._run_hook(row, epoch)
        items = returned if isinstance(returned, list) else [] if returned is None else [returned]
        try:
            checked = [_check_item(item, self.vocab_size) for item in items]
        except DataError as error:
            raise BadRowError(row, "hook_returned", str(error)) from None
        examples: list[Example] = []
        clipped = skipped = 0
        for part, fields in enumerate(checked):
            example, was_cut = self._example(row, part, epoch, fields)
            clipped += was_cut
            if example is None:
                skipped += 1
            else:
                examples.append(example)
        counts = RowCounts(rows=1, clipped=clipped, skipped=skipped, dropped_by_hook=int(not items))
        return Encoded(examples, counts)

    def _run_hook(self, row: Row, epoch: int) -> object:
        record = _parse(row)
        key = row_key(self.seed, epoch, row.file, row.line)
        try:
            record = self.reader(record, key)
            random.seed(key)
            return self.hook(record, self.tokenizer, self.max_length)
        except DataError as error:
            raise BadRowError(row, "bad_record", str(error)) from None
        except (Exception, SystemExit) as error:
            message = f"hook raised {describe_exception(error, self.hook_path)}"
            raise BadRowError(row, "hook_raised", message) from None

    def _example(
        self, row: Row, part: int, epoch: int, fields: Mapping[str, NDArray[Any]]
    ) -> tuple[Example | None, bool]:
        """Return the example, None if it is skipped for its length; and whether it was cut."""
        noisy = fields.get("noisy_ids")
        # A hook that corrupts the input itself owns the whole sequence: no tail is added.
        tail = 0 if noisy is not None else self.tail
        keep = _cut(fields["response_mask"], self.max_length - tail, self.on_too_long)
        if keep is None:
            return None, False
        example = Example(
            input_ids=_with_tail(fields["input_ids"][keep], tail, self.eos_token_id),
            response_mask=_with_tail(fields["response_mask"][keep], tail, True),
            noisy_ids=None if noisy is None else noisy[keep],
            grows=noisy is None and self.eos_tail == "batch_max",
            file=row.file,
            line=row.line,
            part=part,
            epoch=epoch,
        )
        return example, keep.stop - keep.start < len(fields["response_mask"])


def _with_tail(values: NDArray[Any], tail: int, value: int) -> NDArray[Any]:
    longer = np.empty(len(values) + tail, values.dtype)
    longer[: len(values)] = values
    longer[len(values) :] = value
    return longer


def _parse(row: Row) -> object:
    if row.num_bytes is not None:
        raise BadRowError(row, *too_long_line(row.num_bytes))
    text = row.text.removeprefix(BYTE_ORDER_MARK) if row.byte == 0 else row.text
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _not_json(row, text, error) from None


def _not_json(row: Row, text: bytes, error: orjson.JSONDecodeError) -> BadRowError:
    """Return why a row is not JSON: a damaged disk, another encoding, or neither."""
    try:
        text.decode()
    except UnicodeDecodeError as undecodable:
        byte = text[undecodable.start]
        message = f"not UTF-8: byte 0x{byte:02x} at {undecodable.start} of the line"
        return BadRowError(row, "not_utf8", message)
    if b"\0" in text:
        return BadRowError(row, *nul_byte(text))
    return BadRowError(row, "not_json", f"not JSON: {error.msg}")


def _check_item(item: object, vocab_size: int) -> dict[str, NDArray[Any]]:
    if not isinstance(item, Mapping):
        raise DataError(
            f"hook returned {type(item).__name__}; return a dict, a list of dicts, or None"
        )
    keys = set(item)
    if not _REQUIRED <= keys <= _ALLOWED:
        raise DataError(
            f"hook returned keys {sorted(map(str, keys))}; "
            "return 'input_ids' and 'response_mask', and 'noisy_ids' if you like"
        )
    fields = {key: _check_list(key, item[key], vocab_size) for key in sorted(keys)}
    lengths = {key: len(values) for key, values in fields.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"hook returned lists of different lengths: {lengths}")
    if not fields["response_mask"].any():
        raise DataError("hook returned no response token; 'response_mask' is false everywhere")
    return fields


def _check_list(key: str, values: object, vocab_size: int) -> NDArray[Any]:
    if not isinstance(values, list):
        raise DataError(f"hook returned {key!r} as {type(values).__name__}; return a list")
    # The usual case, at the speed of C; what is wrong with a list, the loops below say.
    with suppress(TypeError, ValueError, OverflowError):
        if key == "response_mask":
            mask = np.frombuffer(bytes(values), np.uint8)
            if mask.max(initial=0) <= 1:
                return mask.view(np.bool_)
        elif set(map(type, values)) == {int}:
            ids = np.frombuffer(array("q", values), np.int64)
            # A negative id is a large number without its sign.
            if ids.view(np.uint64).max() < vocab_size:
                return ids
    if key == "response_mask":
        if not all(isinstance(value, _TRUTH) and value in (0, 1) for value in values):
            raise DataError("hook returned 'response_mask' with values other than true and false")
        return np.array(values, np.bool_)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise DataError(f"hook returned {key!r} with {value!r}; token ids are integers")
        if not 0 <= value < vocab_size:
            raise DataError(f"hook returned {key!r} with {value}; ids are 0 to {vocab_size - 1}")
    return np.array(values, np.int64)


def _cut(mask: NDArray[np.bool_], room: int, policy: TooLong) -> slice | None:
    """Return which part of an example stays; None skips it.

    `clip_prompt` cuts at the start, `clip_response` at the end; an example that would lose its
    whole response is skipped.
    """
    if len(mask) <= room:
        return slice(0, len(mask))
    begin = len(mask) - room if policy == "clip_prompt" else 0
    keep = slice(begin, begin + max(room, 0))
    return keep if policy != "skip" and room > 0 and mask[keep].any() else None


def build_encoder(config: DataConfig, tokenizer_dir: Path, ids: TokenIds, seed: int = 0) -> Encoder:
    """Load hook and tokenizer.

    Args:
        config: The data section; with `format: auto` each row is of the format it looks like.
        tokenizer_dir: The folder of the tokenizer.
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
