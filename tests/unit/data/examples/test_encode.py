"""What a hook returned: checked in one line, cut or left out by the stated policy."""

import random
import time
from collections import UserDict
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llada_sft.config.sections.data import End
from llada_sft.data.examples.answer_end import AnswerEnd
from llada_sft.data.examples.encode import Encoder, Example, TooLong
from llada_sft.data.examples.hook import HookFunction, load_hook
from llada_sft.data.examples.quarantine import BadRowError
from llada_sft.data.examples.row_counts import RowCounts
from llada_sft.data.records.normalize import RecordReader
from llada_sft.data.rows.row import Row
from llada_sft.errors import DataError

EOS = 9
WHERE = "s.jsonl:3 (byte 70)"


def encoder(
    hook: HookFunction,
    max_length: int = 8,
    on_too_long: TooLong = "skip",
    end: End = 1,
    end_ids: tuple[int, ...] = (),
    eos_after_cut: bool = False,
    hook_path: Path = Path("hook.py"),
) -> Encoder:
    return Encoder(
        hook=hook,
        hook_path=hook_path,
        tokenizer="the tokenizer",
        vocab_size=10,
        max_length=max_length,
        on_too_long=on_too_long,
        answer_end=AnswerEnd(end, EOS, end_ids, most_tokens=4),
        eos_after_cut=eos_after_cut,
    )


def row(text: bytes = b"{}") -> Row:
    return Row("s.jsonl", line=3, byte=70, text=text, path="s.jsonl")


def encode(returned: object, **settings: Any) -> list[Example]:
    return encoder(lambda *_: returned, **settings)(row()).examples


def item(prompt: int, response: int, **more: object) -> dict[str, object]:
    """Prompt tokens 1, response tokens 2, 3, 4, ..."""
    ids = [1] * prompt + list(range(2, 2 + response))
    return {"input_ids": ids, "response_mask": [False] * prompt + [True] * response, **more}


def bad_row(encode_row: Encoder, line: Row) -> BadRowError:
    with pytest.raises(BadRowError) as caught:
        encode_row(line)
    return caught.value


def raised(encode_row: Encoder, reason: str) -> str:
    error = bad_row(encode_row, row())
    assert error.reason == reason
    return str(error)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("abc", "hook returned str; return a dict, a list of dicts, or None"),
        (7, "hook returned int; return a dict, a list of dicts, or None"),
        (([1], [True]), "hook returned tuple; return a dict, a list of dicts, or None"),
        (iter([]), "hook returned list_iterator; return a dict, a list of dicts, or None"),
        ((x for x in [1]), "hook returned generator; return a dict, a list of dicts, or None"),
        ([item(1, 1), None], "hook returned NoneType; return a dict, a list of dicts, or None"),
        (
            {"input_ids": [1]},
            "hook returned keys ['input_ids']; "
            "return 'input_ids' and 'response_mask', and 'noisy_ids' or 'loss_weights' if you like",
        ),
        (
            item(1, 1, labels=[1, 2]),
            "hook returned keys ['input_ids', 'labels', 'response_mask']; "
            "return 'input_ids' and 'response_mask', and 'noisy_ids' or 'loss_weights' if you like",
        ),
        (
            {"input_ids": [1, 2], "response_mask": [True]},
            "hook returned lists of different lengths: {'input_ids': 2, 'response_mask': 1}",
        ),
        (
            item(1, 1, noisy_ids=[1, 2, 3]),
            "hook returned lists of different lengths: "
            "{'input_ids': 2, 'noisy_ids': 3, 'response_mask': 2}",
        ),
        (
            {"input_ids": torch.tensor([1]), "response_mask": [True]},
            "hook returned 'input_ids' as Tensor; return a list",
        ),
        (
            {"input_ids": [1], "response_mask": np.array([True])},
            "hook returned 'response_mask' as ndarray; return a list",
        ),
        (
            {"input_ids": [1, 10], "response_mask": [True, True]},
            "hook returned 'input_ids' with 10; ids are 0 to 9",
        ),
        (
            {"input_ids": [-1], "response_mask": [True]},
            "hook returned 'input_ids' with -1; ids are 0 to 9",
        ),
        (
            item(1, 1, noisy_ids=[1, 2**70]),
            f"hook returned 'noisy_ids' with {2**70}; ids are 0 to 9",
        ),
        (
            {"input_ids": [True], "response_mask": [True]},
            "hook returned 'input_ids' with True; token ids are integers",
        ),
        (
            {"input_ids": [1.0], "response_mask": [True]},
            "hook returned 'input_ids' with 1.0; token ids are integers",
        ),
        (
            {"input_ids": [[1]], "response_mask": [True]},
            "hook returned 'input_ids' with [1]; token ids are integers",
        ),
        (
            item(1, 1, loss_weights=[0, -1]),
            "hook returned 'loss_weights' with -1; weights are numbers from 0 to 1e+30",
        ),
        (
            item(1, 1, loss_weights=[0, float("nan")]),
            "hook returned 'loss_weights' with nan; weights are numbers from 0 to 1e+30",
        ),
        (
            item(1, 1, loss_weights=[0, 1e39]),
            "hook returned 'loss_weights' with 1e+39; weights are numbers from 0 to 1e+30",
        ),
        (
            item(1, 1, loss_weights=[0, 10**400]),
            f"hook returned 'loss_weights' with 1{'0' * 19}; weights are numbers from 0 to 1e+30",
        ),
        (
            item(1, 1, loss_weights=[False, "1"]),
            "hook returned 'loss_weights' with False; weights are numbers from 0 to 1e+30",
        ),
        (
            item(1, 1, loss_weights=[0, 1j]),
            "hook returned 'loss_weights' with 1j; weights are numbers from 0 to 1e+30",
        ),
        (
            item(1, 1, loss_weights=[1]),
            "hook returned lists of different lengths: {'input_ids': 2, 'loss_weights': 1,"
            " 'response_mask': 2}",
        ),
        (
            {"input_ids": [1], "response_mask": [2]},
            "hook returned 'response_mask' with values other than true and false",
        ),
        (
            {"input_ids": [1], "response_mask": ["true"]},
            "hook returned 'response_mask' with values other than true and false",
        ),
        (
            {"input_ids": [1, 2], "response_mask": [np.array([0, 1]), np.array([1, 1])]},
            "hook returned 'response_mask' with values other than true and false",
        ),
        (
            {"input_ids": [1, 2], "response_mask": [False, 0]},
            "hook returned no response token; 'response_mask' is false everywhere",
        ),
        (
            {"input_ids": [], "response_mask": []},
            "hook returned no response token; 'response_mask' is false everywhere",
        ),
    ],
)
def test_what_a_hook_must_not_return(returned: object, message: str) -> None:
    assert raised(encoder(lambda *_: returned), "hook_returned") == f"{WHERE}: {message}"


def test_a_row_of_another_format_is_a_bad_row() -> None:
    encode_row = replace(encoder(lambda *_: None), reader=RecordReader("messages"))
    error = bad_row(encode_row, row(b'{"prompt": "a", "response": "b"}'))
    assert (str(error), error.reason) == (
        f"{WHERE}: not messages: no 'messages'; its fields are 'prompt', 'response'; "
        "it is prompt_response: one run reads one format, or data.format: raw",
        "bad_record",
    )


def test_what_is_random_is_keyed_by_seed_epoch_file_and_line() -> None:
    conversation = [
        {"role": role, "content": f"{role} {n}"}
        for n in range(50)
        for role in ("user", "assistant")
    ]
    text = orjson.dumps({"messages": conversation})

    def drawn(seed: int = 0, epoch: int = 0, file: str = "s.jsonl", line: int = 3) -> object:
        seen: list[object] = []

        def hook(record: Any, *_: object) -> None:
            seen.append((len(record["messages"]), random.random()))

        encode_row = replace(encoder(hook), reader=RecordReader("messages"), seed=seed)
        random.seed(time.monotonic_ns())
        encode_row(Row(file, line, 70, text, file), epoch)
        return seen

    assert drawn() == drawn()
    others = [drawn(), drawn(seed=1), drawn(epoch=1), drawn(file="t.jsonl"), drawn(line=4)]
    assert len({str(one) for one in others}) == 5


def test_the_hook_gets_record_tokenizer_and_length() -> None:
    seen: list[object] = []
    encoder(lambda *arguments: seen.append(arguments), max_length=8)(row(b'{"a": [1, "\xc3\xa9"]}'))
    assert seen == [({"a": [1, "é"]}, "the tokenizer", 8)]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('    return record["x"]', "hook raised KeyError: 'x' (hook.py line 2)"),
        ("    assert False", "hook raised AssertionError (hook.py line 2)"),
        ("    import json\n    json.loads('{')", "(hook.py line 3)"),
        ("    raise ValueError('a\\n  b')", "hook raised ValueError: a b (hook.py line 2)"),
    ],
)
@pytest.mark.parametrize("relative", [False, True])
def test_a_hook_that_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str, relative: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("hook.py") if relative else tmp_path / "hook.py"
    path.write_text(f"def process_data(record, tokenizer, max_length):\n{body}\n")
    found = raised(encoder(load_hook(path), hook_path=path), "hook_raised")
    assert found.startswith(f"{WHERE}: hook raised ")
    assert found.endswith(message)
    assert "\n" not in found


def test_a_data_error_of_the_hook_speaks_for_itself() -> None:
    def hook(*_: object) -> object:
        raise DataError("'prompt' is empty")

    assert raised(encoder(hook), "bad_record") == f"{WHERE}: 'prompt' is empty"


def test_a_tail_of_a_number_of_tokens() -> None:
    (example,) = encode(item(2, 2), end=3)
    assert example.input_ids.tolist() == [1, 1, 2, 3, EOS, EOS, EOS]
    assert example.response_mask.tolist() == [False] * 2 + [True] * 5
    assert example.input_ids.dtype == np.int64
    assert example.response_mask.dtype == np.bool_
    assert (example.noisy_ids, example.grows) == (None, False)
    assert (example.file, example.line, example.part) == ("s.jsonl", 3, 0)


def test_a_tail_that_grows_begins_with_one_token() -> None:
    (example,) = encode(item(2, 2), end="batch_max")
    assert example.input_ids.tolist() == [1, 1, 2, 3, EOS]
    assert example.response_mask.tolist() == [False] * 2 + [True] * 3
    assert example.grows


@pytest.mark.parametrize("end", [2, "batch_max"])
def test_noisy_ids_pass_through_without_a_tail(end: int | Literal["batch_max"]) -> None:
    (example,) = encode(item(1, 2, noisy_ids=[1, 7, 8]), end=end)
    assert example.input_ids.tolist() == [1, 2, 3]
    assert example.response_mask.tolist() == [False, True, True]
    assert example.noisy_ids is not None
    assert example.noisy_ids.tolist() == [1, 7, 8]
    assert not example.grows
    assert example.input_ids.dtype == example.noisy_ids.dtype == np.int64
    assert example.response_mask.dtype == np.bool_


def test_numpy_integers_and_other_mappings_are_fine() -> None:
    returned = UserDict(
        input_ids=[np.int32(1), np.int64(2)], response_mask=[np.bool_(False), np.int8(1)]
    )
    (example,) = encode(returned)
    assert example.input_ids.tolist() == [1, 2, EOS]
    assert example.response_mask.tolist() == [False, True, True]


def test_none_and_an_empty_list_leave_the_row_out() -> None:
    assert encode(None) == []
    assert encode([]) == []


def test_a_list_makes_several_examples_with_parts_of_their_own() -> None:
    examples = encode([item(1, 1), item(7, 1), item(0, 2)])
    assert [example.part for example in examples] == [0, 2]
    assert [len(example.input_ids) for example in examples] == [3, 3]


# An item of 4 prompt and 4 response tokens (2 3 4 5), and room for 6 with the tail.
@pytest.mark.parametrize(
    ("policy", "tail", "prompt", "response"),
    [
        ("skip", 1, None, None),
        ("clip_prompt", 1, 1, [2, 3, 4, 5, EOS]),
        ("clip_prompt", 3, 0, [3, 4, 5, EOS, EOS, EOS]),
        ("clip_prompt", 6, None, None),
        # What is cut does not end here.
        ("clip_response", 1, 4, [2, 3]),
        ("clip_response", "batch_max", 4, [2, 3]),
        # No response token is left.
        ("clip_response", 2, None, None),
        ("clip_response", 7, None, None),
    ],
)
def test_an_example_that_is_too_long(
    policy: TooLong,
    tail: int | Literal["batch_max"],
    prompt: int | None,
    response: list[int] | None,
) -> None:
    examples = encode(item(4, 4), max_length=6, on_too_long=policy, end=tail)
    if prompt is None or response is None:
        assert examples == []
        return
    (example,) = examples
    assert example.input_ids.tolist() == [1] * prompt + response
    assert example.response_mask.tolist() == [False] * prompt + [True] * len(response)


def test_noisy_ids_are_cut_with_the_rest() -> None:
    returned = item(4, 4, noisy_ids=[7] * 4 + [8, 7, 8, 7])
    (example,) = encode(returned, max_length=6, on_too_long="clip_prompt")
    assert example.input_ids.tolist() == [1, 1, 2, 3, 4, 5]
    assert example.noisy_ids is not None
    assert example.noisy_ids.tolist() == [7, 7, 8, 7, 8, 7]


def test_weights_are_cut_with_the_rest_and_the_tail_has_the_last() -> None:
    returned = item(2, 2, loss_weights=[0, 0, 0.5, 2])
    (example,) = encode(returned, end=2)
    assert example.loss_weights is not None
    assert example.loss_weights.dtype == np.float32
    assert example.loss_weights.tolist() == [0, 0, 0.5, 2, 2, 2]
    (example,) = encode(returned, max_length=4, on_too_long="clip_prompt")
    assert example.loss_weights is not None and example.loss_weights.tolist() == [0, 0.5, 2, 2]
    (example,) = encode(item(2, 2))
    assert example.loss_weights is None


def test_a_prompt_whose_response_is_cut_off_goes_with_it() -> None:
    """Of a conversation of two answers, the first is whole: EOS follows it."""
    returned = {"input_ids": [1, 2, 1, 1, 1, 3], "response_mask": [False, True, *[False] * 3, True]}
    (example,) = encode(returned, max_length=5, on_too_long="clip_response")
    assert example.input_ids.tolist() == [1, 2, EOS]
    assert example.response_mask.tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("returned", "policy", "counts"),
    [
        (item(1, 1), "skip", RowCounts(rows=1)),
        (None, "skip", RowCounts(rows=1, dropped_by_hook=1)),
        ([], "skip", RowCounts(rows=1, dropped_by_hook=1)),
        (item(4, 4), "skip", RowCounts(rows=1, skipped=1)),
        (item(4, 4), "clip_prompt", RowCounts(rows=1, clipped=1)),
        (item(4, 4), "clip_response", RowCounts(rows=1, clipped=1)),
        # Its prompt alone fills the room: nothing would be left to learn.
        (item(6, 2), "clip_response", RowCounts(rows=1, skipped=1)),
        (
            [item(6, 2), item(1, 1), item(4, 4)],
            "clip_response",
            RowCounts(rows=1, clipped=1, skipped=1),
        ),
    ],
)
def test_what_becomes_of_a_row_is_counted(
    returned: object, policy: TooLong, counts: RowCounts
) -> None:
    encode_row = encoder(lambda *_: returned, max_length=6, on_too_long=policy)
    assert encode_row(row()).counts == counts


@given(
    prompt=st.integers(0, 6),
    response=st.integers(1, 6),
    max_length=st.integers(1, 12),
    policy=st.sampled_from(["skip", "clip_prompt", "clip_response"]),
    tail=st.sampled_from([1, 2, 5, "batch_max"]),
)
def test_no_example_is_longer_than_max_length(
    prompt: int,
    response: int,
    max_length: int,
    policy: TooLong,
    tail: int | Literal["batch_max"],
) -> None:
    fixed = 1 if tail == "batch_max" else tail
    returned = item(prompt, response)
    options: Any = {"max_length": max_length, "on_too_long": policy, "end": tail}
    examples = encode(returned, **options)
    if prompt + response + fixed <= max_length:
        assert len(examples) == 1
        assert len(examples[0].input_ids) == prompt + response + fixed
    for example in examples:
        assert len(example.input_ids) == len(example.response_mask) <= max_length
        # What is cut at its end has no tail.
        whole = policy == "clip_prompt" or prompt + response + fixed <= max_length
        assert example.tail == (fixed if whole else 0)
        assert example.grows == (whole and tail == "batch_max")
        eos = example.input_ids == EOS
        assert eos.tolist() == [False] * (len(eos) - example.tail) + [True] * example.tail
        assert example.response_mask[-max(example.tail, 1) :].all()
        # At least one token of the answer itself.
        assert example.response_mask.sum() > example.tail
    with_eos = encode(returned, eos_after_cut=True, **options)
    assert [example.tail for example in with_eos] == [fixed] * len(examples)
