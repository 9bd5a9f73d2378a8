"""What a hook gets: records of every known format in one form, cut to the answer to learn.

The hook is called with a record, the tokenizer and a length: it knows neither the config nor the
epoch. So what depends on those is done here, before it. A conversation becomes `messages`, which
end with the answer to learn (`data.multi_turn`); plain text becomes `text`, token ids `input_ids`
and `response_mask`. All other fields of the record and of its turns stay, for hooks that want them.
With `data.format: raw` nothing is done.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from llada_sft.config.record_formats import (
    FIELDS,
    OF_CONVERSATIONS,
    REQUIRED,
    KnownFormat,
    MultiTurn,
    RecordFormat,
)
from llada_sft.data.records.formats import RecordRules, format_of
from llada_sft.data.records.read import Tokenized, read_record
from llada_sft.data.records.turns import choose_answers
from llada_sft.data.records.unread import unread_fields
from llada_sft.keys import hashed

# Beside what a record was read as, these would be taken for its conversation or text.
_OF_OTHERS = {name for required in REQUIRED.values() for name in required} | {*FIELDS["tokens"]}


def row_key(seed: int, epoch: int, file: str, line: int) -> int:
    """Return the 64-bit key of what is drawn for a row in an epoch; not that of its noise."""
    return hashed("row", seed, epoch, file, line)


@dataclass(frozen=True)
class RecordReader:
    """Brings records into the form that hooks get.

    Args:
        format: `data.format`, or the format detected from the first rows. With `auto` each
            record is of the format that it looks like, and none at all is fine.
        rules: `data.fields`, `data.roles` and `data.ignore_fields`.
        multi_turn: `data.multi_turn`.
    """

    format: RecordFormat = "raw"
    rules: RecordRules = field(default_factory=RecordRules)
    multi_turn: MultiTurn = "random"

    def __call__(self, record: object, key: int) -> object:
        """Read a record; `key` draws its answer.

        Raises:
            DataError: It is not of the format, or there is nothing to learn.
            NothingToLearnError: Its turns say that none of them is to be learned.
        """
        record_format = self._format_of(record)
        return record if record_format is None else self._read(record, record_format, key)

    def unread(self, record: object, read_by_template: Collection[str] = ()) -> set[str]:
        """Name the fields of a record that its format does not read; none of a raw one."""
        record_format = self._format_of(record)
        if record_format is None or not isinstance(record, Mapping):
            return set()
        return unread_fields(record, record_format, self.rules, read_by_template)

    def _format_of(self, record: object) -> KnownFormat | None:
        if self.format == "raw":
            return None
        return format_of(record, self.rules.fields) if self.format == "auto" else self.format

    def _read(self, record: object, record_format: KnownFormat, key: int) -> Mapping[str, object]:
        content = read_record(record, record_format, self.rules)
        assert isinstance(record, Mapping)
        others = {name: value for name, value in record.items() if name not in self.rules.ignored}
        if isinstance(content, str | Tokenized):
            others = {name: value for name, value in others.items() if name not in _OF_OTHERS}
            return others | ({"text": content} if isinstance(content, str) else vars(content))
        messages = choose_answers(content.turns, self.multi_turn, key, content.history)
        if not OF_CONVERSATIONS.isdisjoint(others):
            # What was read of them is the first of the messages now, or the tools below.
            others = {name: one for name, one in others.items() if name not in OF_CONVERSATIONS}
        tools = {} if content.tools is None else {"tools": content.tools}
        return {**others, "messages": messages, **tools}
