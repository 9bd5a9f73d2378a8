"""logs/answers.jsonl -> the answers of each validation, with the order of unmasking if it is known.

Earlier versions did not log the order: their answers are shown plain.
"""

import json
from collections.abc import Sequence
from typing import Any

from llada_sft.cluster import run_files
from llada_sft.report.limits import Limits
from llada_sft.report.not_read import lines_not_read
from llada_sft.run_dir import RunDir

_TEXTS = ("set", "row", "prompt", "reference", "answer")
Answer = dict[str, Any]


def answers_of(run: RunDir, limits: Limits, problems: list[str]) -> dict[str, Any]:
    """Read the answers of the validations that fit into the page.

    Returns:
        `steps`: step and answers of each validation that is shown; `num_steps`: of all.

    Raises:
        OSError: The file cannot be read; `FileNotFoundError` if there is none.
    """
    content = run_files.read_end(run.answers)
    lines = content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]
    parsed = [answer for line in lines if (answer := _parse(line)) is not None]
    if len(parsed) < len(lines):
        problems.append(lines_not_read("answers.jsonl", len(lines) - len(parsed)))
    by_step = _by_step(parsed)
    steps = _that_fit(list(by_step), by_step, limits)
    shown = {step: [_cut(answer, limits) for answer in by_step[step]] for step in steps}
    return {
        "steps": [{"step": step, "answers": answers} for step, answers in shown.items()],
        "num_steps": len(by_step),
    }


def _by_step(answers: Sequence[Answer]) -> dict[int, list[Answer]]:
    """Group answers; those of a later attempt replace what an earlier one had from there on."""
    grouped: dict[int, dict[tuple[str, str], Answer]] = {}
    for answer in answers:
        step = answer["step"]
        for later in [known for known in grouped if known > step]:
            del grouped[later]
        grouped.setdefault(step, {})[answer["set"], answer["row"]] = answer
    return {step: list(of_step.values()) for step, of_step in grouped.items()}


def _that_fit(steps: Sequence[int], by_step: dict[int, list[Answer]], limits: Limits) -> list[int]:
    """Choose steps at equal distances, the last one among them, whose texts fit."""
    size = max((_size(by_step[step], limits) for step in steps), default=1)
    count = min(len(steps), max(1, limits.answer_bytes // size))
    if count <= 1:
        return list(steps[-1:])
    return [steps[place * (len(steps) - 1) // (count - 1)] for place in range(count)]


def _size(answers: Sequence[Answer], limits: Limits) -> int:
    """Return the bytes that answers take in the page: a character may be six of them."""
    return len(json.dumps([_cut(answer, limits) for answer in answers]))


def _parse(line: bytes) -> Answer | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or type(fields.get("step")) is not int:
        return None
    if not all(isinstance(fields.get(name), str) for name in _TEXTS):
        return None
    answer = {name: fields[name] for name in ("step", *_TEXTS)}
    if _has_order(fields):
        answer |= {"tokens": fields["tokens"], "num_passes": fields["num_passes"]}
    return answer


def _has_order(fields: Answer) -> bool:
    """Return whether the pieces are known, and are those of the answer."""
    tokens, num_passes = fields.get("tokens"), fields.get("num_passes")
    if not isinstance(tokens, list) or type(num_passes) is not int or num_passes < 1:
        return False
    for token in tokens:
        if not (isinstance(token, list) and len(token) == 2 and isinstance(token[0], str)):
            return False
        if type(token[1]) is not int or not 1 <= token[1] <= num_passes:
            return False
    return bool("".join(text for text, _ in tokens) == fields["answer"])


def _cut(answer: Answer, limits: Limits) -> Answer:
    """Return an answer without its step; a long one without its order."""
    cut = {name: limits.cut(answer[name]) for name in _TEXTS}
    if "tokens" in answer and len(answer["answer"]) <= limits.text_characters:
        cut |= {"tokens": answer["tokens"], "num_passes": answer["num_passes"]}
    return cut
