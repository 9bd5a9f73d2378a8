"""What can be wrong with a hook, and the one line that says so."""

from pathlib import Path

import pytest

from llada_sft.data.examples.answer_end import AnswerEnd
from llada_sft.data.examples.encode import Encoder
from llada_sft.data.examples.hook import load_hook
from llada_sft.data.rows.row import Row
from llada_sft.errors import DataError

DEFINE = "define process_data(record, tokenizer, max_length)"
KEYS = "return 'input_ids' and 'response_mask', and 'noisy_ids' or 'loss_weights' if you like"
KIND = "return a dict, a list of dicts, or None"

# What the file holds (or only the body of the function), and the line, after the file's path.
NOT_LOADED = {
    "no function": (
        "def process(record, tokenizer, max_length): ...",
        ": defines no function process_data(record, tokenizer, max_length)",
    ),
    "not a function": (
        "process_data = 7",
        ": defines no function process_data(record, tokenizer, max_length)",
    ),
    "an import that is not a function": (
        "from math import pi as process_data",
        ": process_data is of type float, not a function",
    ),
    "bound again": (
        "def process_data(record, tokenizer, max_length): ...\nprocess_data = None",
        ": process_data is of type NoneType, not a function",
    ),
    "too few parameters": (
        "import json\n\ndef process_data(record, tokenizer): ...",
        f":3: process_data(record, tokenizer) cannot take three arguments; {DEFINE}",
    ),
    "too many parameters": (
        "def process_data(record, tokenizer, max_length, seed): ...",
        ":1: process_data(record, tokenizer, max_length, seed) cannot take three arguments; "
        + DEFINE,
    ),
    "a keyword that must be given": (
        "def process_data(record, tokenizer, max_length, *, seed): ...",
        ":1: process_data(record, tokenizer, max_length, *, seed) cannot take three arguments; "
        + DEFINE,
    ),
    "too few parameters, imported": (
        "from operator import add as process_data",
        f": process_data(a, b, /) cannot take three arguments; {DEFINE}",
    ),
    "a syntax error": ("def process_data(record:\n", ":1: not Python: '(' was never closed"),
    "wrong indentation": (
        "def process_data(record, tokenizer, max_length):\nreturn None",
        ":2: not Python: expected an indented block after function definition on line 1",
    ),
    "an import that fails": (
        "import nothing_of_this_name\ndef process_data(record, tokenizer, max_length): ...",
        ": the hook raised on import: ModuleNotFoundError: No module named "
        "'nothing_of_this_name' (hook.py line 1)",
    ),
    "an exit on import": (
        "import sys\ndef process_data(record, tokenizer, max_length): ...\nsys.exit(3)",
        ": the hook raised on import: SystemExit: 3 (hook.py line 3)",
    ),
    "an exception that is not an Exception, on import": (
        "import asyncio\ndef process_data(record, tokenizer, max_length): ...\n"
        "raise asyncio.CancelledError",
        ": the hook raised on import: CancelledError (hook.py line 3)",
    ),
    "deleted again": (
        "def process_data(record, tokenizer, max_length): ...\ndel process_data",
        ": process_data is of type NoneType, not a function",
    ),
    "more than the parser holds": ("x = " + "-" * 100_000 + "1", ": not Python: nested too deeply"),
}
# The body of the function, and the line, after the place of the record.
NOT_USED = {
    "raises": (
        "return record['question']",
        "hook raised KeyError: 'question' (hook.py line 2)",
    ),
    "exits": ("raise SystemExit(3)", "hook raised SystemExit: 3 (hook.py line 2)"),
    "raises what is not an Exception": (
        "raise GeneratorExit",
        "hook raised GeneratorExit (hook.py line 2)",
    ),
    "raises what has no text": (
        "class Mine(Exception):\n        __str__ = None\n    raise Mine",
        "hook raised Mine (hook.py line 4)",
    ),
    "something that cannot be shown": (
        "class Mine:\n        __repr__ = None\n"
        "    return {'input_ids': [Mine()], 'response_mask': [True]}",
        "what the hook returned raised TypeError: 'NoneType' object is not callable",
    ),
    "a number without end": (
        "return {'input_ids': [10**5000], 'response_mask': [True]}",
        "what the hook returned raised ValueError: Exceeds the limit (4300 digits) for integer"
        " string conversion; use sys.set_int_max_str_digits() to increase the limit",
    ),
    "never ends calling itself": (
        "return process_data(record, tokenizer, max_length)",
        "hook raised RecursionError: maximum recursion depth exceeded (hook.py line 2)",
    ),
    "a string": ("return 'abc'", f"hook returned str; {KIND}"),
    "a tuple": ("return [1], [True]", f"hook returned tuple; {KIND}"),
    "a generator": (
        "yield {'input_ids': [1], 'response_mask': [True]}",
        f"hook returned generator; {KIND}",
    ),
    "None in a list": ("return [None]", f"hook returned NoneType; {KIND}"),
    "a missing key": (
        "return {'input_ids': [1]}",
        f"hook returned keys ['input_ids']; {KEYS}",
    ),
    "an unknown key": (
        "return {'input_ids': [1], 'response_mask': [True], 'labels': [1]}",
        f"hook returned keys ['input_ids', 'labels', 'response_mask']; {KEYS}",
    ),
    "other lengths": (
        "return {'input_ids': [1, 2], 'response_mask': [True]}",
        "hook returned lists of different lengths: {'input_ids': 2, 'response_mask': 1}",
    ),
    "a tensor": (
        "import torch\n    return {'input_ids': torch.ones(1), 'response_mask': [True]}",
        "hook returned 'input_ids' as Tensor; return a list",
    ),
    "a string for a list": (
        "return {'input_ids': 'abc', 'response_mask': [True] * 3}",
        "hook returned 'input_ids' as str; return a list",
    ),
    "an id out of range": (
        "return {'input_ids': [1, 10], 'response_mask': [False, True]}",
        "hook returned 'input_ids' with 10; ids are 0 to 9",
    ),
    "a negative id": (
        "return {'input_ids': [1, -1], 'response_mask': [False, True]}",
        "hook returned 'input_ids' with -1; ids are 0 to 9",
    ),
    "a float": (
        "return {'input_ids': [1, 2.0], 'response_mask': [False, True]}",
        "hook returned 'input_ids' with 2.0; token ids are integers",
    ),
    "a bool": (
        "return {'input_ids': [True, 2], 'response_mask': [False, True]}",
        "hook returned 'input_ids' with True; token ids are integers",
    ),
    "no number at all": (
        "return {'input_ids': [1, None], 'response_mask': [False, True]}",
        "hook returned 'input_ids' with None; token ids are integers",
    ),
    "a mask of ids": (
        "return {'input_ids': [1, 2], 'response_mask': [0, 2]}",
        "hook returned 'response_mask' with values other than true and false",
    ),
    "no response": (
        "return {'input_ids': [1, 2], 'response_mask': [False, False]}",
        "hook returned no response token; 'response_mask' is false everywhere",
    ),
    "nothing in the lists": (
        "return {'input_ids': [], 'response_mask': []}",
        "hook returned no response token; 'response_mask' is false everywhere",
    ),
    "noise out of range": (
        "return {'input_ids': [1], 'response_mask': [True], 'noisy_ids': [99]}",
        "hook returned 'noisy_ids' with 99; ids are 0 to 9",
    ),
}


def run(path: Path) -> None:
    encode = Encoder(
        hook=load_hook(path),
        hook_path=path,
        tokenizer=None,
        vocab_size=10,
        max_length=8,
        on_too_long="skip",
        answer_end=AnswerEnd(1, eos_token_id=9),
    )
    encode(Row("s.jsonl", line=3, byte=70, text=b'{"id": 7}', path="s.jsonl"))


def line_of(path: Path, content: str) -> str:
    path.write_text(content + "\n")
    with pytest.raises(DataError) as caught:
        run(path)
    return str(caught.value)


@pytest.mark.parametrize(("content", "line"), NOT_LOADED.values(), ids=NOT_LOADED)
def test_a_hook_that_cannot_be_loaded(tmp_path: Path, content: str, line: str) -> None:
    path = tmp_path / "hook.py"
    assert line_of(path, content) == f"{path}{line}"


@pytest.mark.parametrize(("body", "line"), NOT_USED.values(), ids=NOT_USED)
def test_what_a_hook_does_that_cannot_be_used(tmp_path: Path, body: str, line: str) -> None:
    content = f"def process_data(record, tokenizer, max_length):\n    {body}"
    assert line_of(tmp_path / "hook.py", content) == f"s.jsonl:3 (byte 70): {line}"


@pytest.mark.parametrize(
    "content",
    [
        "def process_data(*everything): ...",
        "def process_data(record, tokenizer, max_length=4, *, seed=0): ...",
        "def process_data(record, *others): ...",
        "def process_data(record, /, tokenizer, max_length, more=None): ...",
        "from functools import cache\n@cache\ndef process_data(a, b): ...\n"
        "process_data = lambda *_: None",
        "from builtins import print as process_data",
    ],
)
def test_a_hook_may_take_its_three_arguments_in_other_ways(tmp_path: Path, content: str) -> None:
    path = tmp_path / "hook.py"
    path.write_text(content + "\n")
    run(path)


def test_a_function_in_c_may_not_tell_its_parameters(tmp_path: Path) -> None:
    path = tmp_path / "hook.py"
    path.write_text("from builtins import max as process_data\n")
    assert load_hook(path) is max  # type: ignore[comparison-overlap]
