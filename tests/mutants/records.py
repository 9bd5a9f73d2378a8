"""Mutants of what a row says: formats, turns, chat templates and special tokens."""

from tests.mutants.mutant import of_file

MUTANTS = (
    *of_file(
        "data/records/normalize.py",
        "data/records/test_normalize.py data/examples/test_encode.py",
        (
            'hashed("row", seed, epoch, file, line)',
            'hashed("row", seed, file, line)',
            "every epoch draws the same answer",
        ),
    ),
    *of_file(
        "data/records/turns.py",
        "data/records/test_normalize.py data/records/test_turns.py",
        ("possible[key % len(possible)]", "possible[key % 1]", "always the first answer is drawn"),
        (
            "if weights[number] > 0 and _is_answer",
            "if _is_answer",
            "an answer of weight 0 is drawn",
        ),
        (
            "if weights[number] > 0 and number >= first]",
            "if number >= first]",
            "the last answer is learned though its weight is 0",
        ),
        (
            'first = 0 if multi_turn == "all" else history',
            "first = 0",
            "an answer of the history is drawn",
        ),
        ("    if turn.get(LEARN) is False:\n        return 0\n", "", "marks of ours are no marks"),
    ),
    *of_file(
        "data/records/formats.py",
        "data/records/test_formats.py data/records/test_read.py "
        "data/records/test_foreign_formats.py",
        (
            "return any(name in value[0] for name in contents)",
            "return True",
            "half a turn is a format",
        ),
        (
            "if name not in taken and record.get(name) is not None:",
            "if record.get(name) is not None:",
            "a field that is named as another is read twice",
        ),
        (
            'if record_format == "prompt_response" and "instruction" in record:',
            "if False:",
            "an instruction is left out of the prompt",
        ),
        (
            "yield from complete or some or REQUIRED",
            "yield from REQUIRED",
            "data.fields does not decide the format",
        ),
    ),
    *of_file(
        "data/records/read.py",
        "data/records/test_formats.py data/records/test_turns.py data/records/test_read.py",
        (
            'if turns[0]["role"] in ("system", "developer"):',
            'if turns[-1]["role"] in ("system", "developer"):',
            "a record may have two system turns",
        ),
        (
            "            turn[LEARN] = False\n",
            "            pass\n",
            "answers of a prompt are learned",
        ),
        ("if label not in (_CONTEXT, token):", "if False:", "labels that were shifted are learned"),
    ),
    *of_file(
        "data/records/unread.py",
        "data/test_misread_rows.py data/records/test_nothing_is_lost.py",
        ("if len(turn) > 2:", "if len(turn) > 3:", "a field of a turn is lost unseen"),
        ("and value not in _EMPTY", "", "fields that hold nothing are reported"),
    ),
    *of_file(
        "data/records/special_tokens.py",
        "data/records/test_special_tokens.py",
        (
            "ids += self._encode(hidden.show(rendered[begin : found.start()]), split=True)",
            "ids += self._encode(hidden.show(rendered[begin : found.start()]))",
            "a typed token ends the user's turn",
        ),
        (
            "and (learned or self.in_text ==",
            "and (self.in_text ==",
            "the mask token is learned as text",
        ),
    ),
    *of_file(
        "data/records/chat_template.py",
        "data/records/test_chat_template.py",
        (
            "return whole.removesuffix(_common_end(*plain))",
            "return whole",
            "what closes a turn is learned",
        ),
        (
            'if turn["content"] and any(turn.get(name) for name in CALLS):',
            "if False:",
            "the text next to a call is lost",
        ),
    ),
    *of_file(
        "data/records/chat_tokens.py",
        "data/records/test_golden_formats.py data/records/test_chat_tokens.py",
        (
            "prompt.removeprefix(begin)",
            "prompt",
            "the prompts of a conversation repeat what came before",
        ),
        ("[weight > 0] * len(ids)", "[weight >= 0] * len(ids)", "prompts are learned"),
    ),
    *of_file(
        "data/records/detect.py",
        "data/records/test_detect.py",
        (
            "Counter(formats).most_common(1)[0][0]",
            "Counter(formats).most_common()[-1][0]",
            "the rarest format is taken",
        ),
        (
            "if row.byte == 0 else row.text",
            "if row.byte >= 0 else row.text",
            "a mark within a file is none",
        ),
    ),
)
