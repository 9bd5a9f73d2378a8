"""What a hook gets: records of every known format in one form, cut to the answer to learn.

The hook is called with a record, the tokenizer and a length: it knows neither the config nor the
epoch. So what depends on those is done here, before it. A conversation becomes `messages`, which
end with the answer to learn (`data.multi_turn`); plain text becomes `text`. All other fields of the
record stay, for hooks that want them. With `data.format: raw` nothing is done.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llada_sft.config.record_formats import REQUIRED, KnownFormat, MultiTurn, RecordFormat
from llada_sft.data.records.formats import format_of, read_record
from llada_sft.data.records.turns import choose_answers
from llada_sft.keys import hashed

_OF_CHATS = {name for required in REQUIRED.values() for name in required} - {"text"}


def row_key(seed: int, epoch: int, file: str, line: int) -> int:
    """Return the 64-bit key of what is drawn for a row in an epoch; not that of its noise."""
    return hashed("row", seed, epoch, file, line)


@dataclass(frozen=True)
class RecordReader:
    """Brings records into the form that hooks get.

    Args:
        format: `data.format`, or the format detected from the first rows. With `auto` each
            record is of the format that it looks like, and none at all is fine.
        fields: `data.fields`.
        multi_turn: `data.multi_turn`.
    """

    format: RecordFormat = "raw"
    fields: Mapping[str, str] = field(default_factory=dict)
    multi_turn: MultiTurn = "random"

    def __call__(self, record: object, key: int) -> object:
        """Read a record; `key` draws its answer.

        Raises:
            DataError: It is not of the format, or there is nothing to learn.
        """
        record_format = self.format
        if record_format == "raw":
            return record
        if record_format == "auto":
            own_format = format_of(record, self.fields)
            return record if own_format is None else self._read(record, own_format, key)
        return self._read(record, record_format, key)

    def _read(self, record: object, record_format: KnownFormat, key: int) -> Mapping[str, object]:
        content = read_record(record, record_format, self.fields)
        assert isinstance(record, Mapping)
        if isinstance(content, str):
            # Beside a chat, text would be taken for what the chat was rendered to.
            others = {name: value for name, value in record.items() if name not in _OF_CHATS}
            return {**others, "text": content}
        read = {**record, "messages": choose_answers(content, self.multi_turn, key)}
        # It is the first of the messages now.
        read.pop("system", None)
        return read
