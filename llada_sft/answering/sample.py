"""`llada-sft sample`: answers to prompts of the command line, or to a file of prompts or records.

Torch is imported once all that was given is known to be right.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from llada_sft import __version__
from llada_sft.answering.answers_file import AnswersFile, require_new
from llada_sft.answering.options import settings_of
from llada_sft.answering.questions import (
    Question,
    read_questions,
    require_no_problems,
    said_by_user,
)
from llada_sft.errors import ConfigError, DataError
from llada_sft.keys import digest
from llada_sft.local_ranks import ALONE, Rank, is_local_rank, rank_of, run_ranks

if TYPE_CHECKING:
    from llada_sft.answering.answerer import Answered, Answerer

# A log has a line for it where a terminal has a bar.
_LOG_EVERY_S = 30
_EXIT_ALL_BAD = 1


def sample_command(arguments: Namespace) -> int:
    """Run `llada-sft sample` and return its exit code.

    Raises:
        LladaSftError: The model cannot be loaded, the settings do not fit together, or what is
            asked cannot be read.
    """
    _require_fitting(arguments)
    settings_of(arguments)
    if arguments.input is None:
        texts = enumerate(arguments.prompt, start=1)
        questions = [_typed(number, text, arguments) for number, text in texts]
        return _print_answers(questions, arguments)
    if rank_of(os.environ).rank == 0:
        require_new(arguments.out)
    questions = read_questions(arguments.input, _fields(arguments.field), arguments.system)
    if arguments.complete:
        questions = [_completed(question) for question in questions]
    if not arguments.skip_bad:
        require_no_problems(arguments.input, questions)
    if arguments.ranks > 1 and not is_local_rank():
        return run_ranks(arguments.ranks, [sys.executable, "-m", "llada_sft", *sys.argv[1:]])
    return _answer_file(questions, arguments, rank_of(os.environ))


def _require_fitting(arguments: Namespace) -> None:
    if (arguments.input is None) != (arguments.out is None):
        raise ConfigError("--input and --out: give both or neither")
    if arguments.batch_size < 1:
        raise ConfigError(f"--batch-size: must be at least 1, got {arguments.batch_size}")
    if arguments.ranks < 1:
        raise ConfigError(f"--ranks: must be at least 1, got {arguments.ranks}")
    if arguments.ranks > 1 and not is_local_rank() and rank_of(os.environ) != ALONE:
        raise ConfigError("--ranks: srun has started several tasks already; remove it")
    if arguments.input is None and arguments.ranks > 1:
        raise ConfigError("--ranks: is for a file of prompts (--input)")
    if arguments.complete and arguments.system is not None:
        raise ConfigError("--system: a text that is continued (--complete) has no system prompt")


def _fields(given: Sequence[str]) -> Mapping[str, str]:
    fields = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"--field: must be FIELD=NAME, got {text!r}")
        fields[name] = value
    return fields


def _typed(number: int, text: str, arguments: Namespace) -> Question:
    if not text.strip():
        raise ConfigError(f"--prompt: number {number} is empty")
    if arguments.complete:
        return Question(number, text, text=text)
    return Question(number, text, said_by_user(text, arguments.system))


def _completed(question: Question) -> Question:
    """Return a row that is a text as one that is continued."""
    if not isinstance(question.record, str) or question.problem is not None:
        return question
    return Question(question.line, question.record, text=question.record)


def _load(arguments: Namespace, rank: Rank) -> "Answerer":
    from llada_sft.answering.answerer import Answerer

    settings = settings_of(arguments)
    return Answerer.load(
        arguments.model, settings, arguments.batch_size, arguments.seed, rank.local_rank
    )


def _print_answers(questions: Sequence[Question], arguments: Namespace) -> int:
    answerer = _load(arguments, ALONE)
    prompts = []
    for question in questions:
        try:
            prompts.append(answerer.prompt_ids(question))
        except DataError as error:
            raise ConfigError(f"--prompt: number {question.line}: {error}") from None
    answers = answerer.answers(prompts, [question.line for question in questions])
    texts = {number: answered.text for batch in answers for number, answered in batch}
    for number in sorted(texts):
        print(texts[number])
    return 0


def _answer_file(questions: Sequence[Question], arguments: Namespace, rank: Rank) -> int:
    """Answer this rank's questions; rank 0 then waits for the others and writes the file."""
    if rank.rank > 0 and arguments.out.exists():
        # All was known already, and rank 0 has written it.
        return 0
    answerer = _load(arguments, rank)
    questions, prompts = _encoded(answerer, questions)
    if not arguments.skip_bad:
        require_no_problems(arguments.input, questions)
    file = AnswersFile(arguments.out)
    file.begin(_request(arguments, answerer))
    known, add = file.known(), file.writer(rank.rank)
    mine = [n for n in range(len(questions)) if rank.has(n) and n not in known]
    add([_row(n, questions[n], None) for n in mine if n not in prompts])
    asked = [n for n in mine if n in prompts]
    answers = answerer.answers([prompts[n] for n in asked], [questions[n].line for n in asked])
    with _progress(len(asked), rank) as bar:
        for batch in answers:
            add([_row(asked[place], questions[asked[place]], one) for place, one in batch])
            bar.update(len(batch))
    if rank.rank > 0:
        return 0
    file.finish(file.wait_for(len(questions)))
    num_bad = len(questions) - len(prompts)
    if num_bad:
        print(f"{arguments.input}: {num_bad} rows have no answer: 'error' in {arguments.out}")
    return _EXIT_ALL_BAD if num_bad == len(questions) else 0


def _encoded(
    answerer: "Answerer", questions: Sequence[Question]
) -> tuple[list[Question], dict[int, list[int]]]:
    """Return the questions, with what is wrong with them, and the ids of all others by number."""
    checked, prompts = [], {}
    for number, question in enumerate(questions):
        if question.problem is None:
            try:
                prompts[number] = answerer.prompt_ids(question)
            except DataError as error:
                question = replace(question, problem=str(error))
        checked.append(question)
    return checked, prompts


def _row(number: int, question: Question, answered: "Answered | None") -> dict[str, Any]:
    """Return a row of the file, with the number of its question."""
    row: dict[str, Any] = {"number": number, "line": question.line, "record": question.record}
    if question.reference is not None:
        row["reference"] = question.reference
    if answered is None:
        return {**row, "error": question.problem}
    return {
        **row,
        "answer": answered.text,
        "ended": answered.ended,
        "num_tokens": len(answered.ids),
        "num_passes": answered.num_passes,
    }


def _request(arguments: Namespace, answerer: "Answerer") -> dict[str, Any]:
    """Return all that the answers depend on."""
    weights = {
        path.name: [path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(arguments.model.iterdir())
        if path.is_file()
    }
    return {
        "input": digest(arguments.input.read_bytes(), 16).hex(),
        "fields": arguments.field,
        "system": arguments.system,
        "complete": arguments.complete,
        "skip_bad": arguments.skip_bad,
        "model": str(arguments.model.resolve()),
        "files": weights,
        "settings": asdict(answerer.settings),
        "seed": arguments.seed,
        "device": answerer.model.device.type,
        "version": __version__,
    }


def _progress(total: int, rank: Rank) -> "tqdm[Any]":
    return tqdm(
        total=total,
        unit=" prompts" if rank.world_size == 1 else " prompts of rank 0",
        disable=rank.rank > 0,
        mininterval=0.1 if sys.stderr.isatty() else _LOG_EVERY_S,
    )
