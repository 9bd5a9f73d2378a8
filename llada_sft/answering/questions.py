"""A file of prompts or records -> what is asked; without torch, so that a bad row is said at once.

Each line is a JSON value: a text, which is what a user says; or a record of any format that can be
trained on (`data.format`), with an answer or without one. The last answer of a record is not asked
with: it is kept as the reference.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from llada_sft.config.record_formats import REQUIRED, KnownFormat
from llada_sft.data.examples.parse import parse_row
from llada_sft.data.records.conversation import Turn
from llada_sft.data.records.formats import RecordRules, format_of, likely_format, names_in
from llada_sft.data.records.read import Conversation, read_record
from llada_sft.data.records.refused import JUDGEMENTS
from llada_sft.data.rows.row import MAX_LINE_BYTES, Row
from llada_sft.data.storage.files import SUFFIXES, open_text
from llada_sft.errors import DataError

# For an answer that a record lacks, while it is read.
_NO_ANSWER = "?"
_SHOWN_PROBLEMS = 10


@dataclass(frozen=True)
class Question:
    """What is asked with one row.

    Attributes:
        line: Of the file, from 1.
        record: The row's value.
        turns: The conversation up to the answer; empty where there is another prompt.
        tools: What the assistant may call; None if nothing.
        text: Plain text to be continued.
        ids: Token ids to be continued.
        reference: The answer that the row has: its text, or its token ids.
        problem: Why nothing can be asked.
    """

    line: int
    record: object
    turns: Sequence[Turn] = ()
    tools: list[Any] | None = None
    text: str | None = None
    ids: Sequence[int] | None = None
    reference: str | Sequence[int] | None = None
    problem: str | None = None


def said_by_user(text: str, system: str | None = None) -> list[Turn]:
    """Return the turns of a question without a history."""
    first: list[Turn] = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": text}]


def read_questions(
    path: Path, fields: Mapping[str, str], system: str | None = None
) -> list[Question]:
    """Read all rows of a file; those that cannot be asked have a `problem`.

    Args:
        path: A .jsonl file, also compressed.
        fields: As `data.fields`.
        system: The system prompt of rows that have none.

    Raises:
        DataError: The file cannot be read, is of another kind, or has no rows.
    """
    if not path.name.lower().endswith((*SUFFIXES, ".ndjson")):
        endings = ", ".join(SUFFIXES)
        raise DataError(
            f"{path}: must end in {endings}; llada-sft shard makes such files of others"
        )
    questions = [_question(row, fields, system) for row in _rows(path)]
    if not questions:
        raise DataError(f"{path}: has no rows")
    return questions


def require_no_problems(path: Path, questions: Sequence[Question]) -> None:
    """Refuse a file with rows that cannot be asked.

    Raises:
        DataError: One line for each of the first of them.
    """
    bad = [question for question in questions if question.problem is not None]
    if not bad:
        return
    lines = [f"{path}:{one.line}: {one.problem}" for one in islice(bad, _SHOWN_PROBLEMS)]
    if len(bad) > _SHOWN_PROBLEMS:
        lines.append(f"{path}: {len(bad) - _SHOWN_PROBLEMS} more rows like these")
    lines.append(f"{path}: correct them, or give --skip-bad: then they get no answer")
    raise DataError("\n".join(lines))


def _rows(path: Path) -> Iterator[Row]:
    begin = 0
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _row(path, number, begin, line.rstrip(b"\r\n"))
            begin += len(line)


def _row(path: Path, number: int, begin: int, line: bytes) -> Row:
    too_long = len(line) > MAX_LINE_BYTES
    return Row(
        file=path.name,
        line=number,
        byte=begin,
        text=b"" if too_long else line,
        path=str(path),
        num_bytes=len(line) if too_long else None,
    )


def _question(row: Row, fields: Mapping[str, str], system: str | None) -> Question:
    record: object = None
    try:
        record = parse_row(row)
        return replace(_asked(record, fields, system), line=row.line)
    except DataError as error:
        problem = str(error).removeprefix(f"{row.where}: ")
        return Question(row.line, record, problem=problem)


def _asked(record: object, fields: Mapping[str, str], system: str | None) -> Question:
    """Read a row's value.

    Raises:
        DataError: What is wrong with it.
    """
    if isinstance(record, str):
        if not record.strip():
            raise DataError("the text is empty")
        return Question(0, record, said_by_user(record, system))
    if isinstance(record, Mapping) and _only_ids(record):
        return Question(0, record, ids=record["input_ids"])
    rules = RecordRules(fields, ignored=JUDGEMENTS - set(fields.values()))
    completed, answered = _with_answer(record, fields)
    known = format_of(completed, fields) or likely_format(record, fields)
    content = read_record(completed, known, rules)
    if isinstance(content, str):
        return Question(0, record, text=content)
    if not isinstance(content, Conversation):
        begin = _first(content.response_mask)
        ids, reference = content.input_ids[:begin], content.input_ids[begin:]
        return Question(0, record, ids=ids, reference=reference or None)
    return _of_conversation(record, content, answered, system)


def _of_conversation(
    record: object, content: Conversation, answered: bool, system: str | None
) -> Question:
    turns = list(content.turns)
    reference = None
    if turns[-1]["role"] == "assistant":
        last = turns.pop()
        said = last.get("content")
        reference = said if answered and isinstance(said, str) else None
    if not turns:
        raise DataError("it has an answer, and nothing that is asked")
    if system is not None and turns[0]["role"] not in ("system", "developer"):
        turns.insert(0, {"role": "system", "content": system})
    return Question(0, record, turns, content.tools, reference=reference)


def _only_ids(record: Mapping[str, Any]) -> bool:
    ids = record.get("input_ids")
    if "labels" in record or not isinstance(ids, list) or not ids:
        return False
    return len(record) == 1 and all(type(token) is int for token in ids)


def _with_answer(record: object, fields: Mapping[str, str]) -> tuple[object, bool]:
    """Return a record with an answer, as a format needs it, and whether it is its own."""
    if not isinstance(record, Mapping) or format_of(record, fields) in ("messages", "sharegpt"):
        return record, True
    formats: tuple[KnownFormat, ...] = ("alpaca", "prompt_response")
    for known in formats:
        question, answer = REQUIRED[known]
        names = names_in(record, known, fields)
        asks = names[question] in record and "messages" not in record
        if asks and not record.get(names[answer]):
            rest = {name: value for name, value in record.items() if name != names[answer]}
            return {**rest, names[answer]: _NO_ANSWER}, False
    return record, True


def _first(mask: Sequence[bool]) -> int:
    return mask.index(True) if True in mask else len(mask)
