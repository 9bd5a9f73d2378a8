"""What follows an answer: exact ids and masks for each `data.end`, and ids that cannot be."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llada_sft.config.sections.data import DataConfig
from llada_sft.data.examples.answer_end import (
    NO_TAIL,
    AnswerEnd,
    answer_end_of,
    end_token_ids,
    require_reserved,
)
from llada_sft.data.examples.encode import Example
from llada_sft.data.examples.quarantine import BadRowError
from llada_sft.data.examples.tokenizer import TokenIds, load_tokenizer
from llada_sft.data.rows.row import Row
from llada_sft.demo.data import write_demo
from llada_sft.errors import ConfigError
from tests.unit.data.examples.test_encode import EOS, encode, encoder, item, row

VOID, CYCLE = 7, (7, 8, 6)
IDS = TokenIds(vocab_size=100, eos_token_id=1, mask_token_id=2, pad_token_id=3)
OFFICIAL = TokenIds(126464, 126081, 126336, reserved=tuple(range(126084, 126091)))


def void(**options: Any) -> list[Example]:
    return encode(options.pop("of", item(2, 3)), end="void", end_ids=(VOID,), **options)


def rainbow(**options: Any) -> list[Example]:
    return encode(options.pop("of", item(2, 3)), end="rainbow", end_ids=CYCLE, **options)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let four tokens be drawn after each EOS."""
    monkeypatch.setattr("llada_sft.data.examples.answer_end.hashed", lambda *parts: 4)
    yield


@pytest.mark.usefixtures("drawn")
def test_void_tokens_are_not_of_the_response() -> None:
    (example,) = void(max_length=20)
    assert example.input_ids.tolist() == [1, 1, 2, 3, 4, EOS, VOID, VOID, VOID, VOID]
    assert example.response_mask.tolist() == [False] * 2 + [True] * 4 + [False] * 4
    assert (example.tail, example.hidden, example.num_void, example.grows) == (1, 5, 4, False)
    assert example.input_ids.dtype == np.int64 and example.response_mask.dtype == np.bool_


@pytest.mark.usefixtures("drawn")
def test_a_rainbow_is_of_the_response() -> None:
    (example,) = rainbow(max_length=20)
    assert example.input_ids.tolist() == [1, 1, 2, 3, 4, EOS, 7, 8, 6, 7]
    assert example.response_mask.tolist() == [False] * 2 + [True] * 8
    assert (example.tail, example.hidden, example.num_void, example.grows) == (5, 0, 0, False)


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize(("make", "learned"), [(void, [2, 3, 4, EOS]), (rainbow, None)])
def test_an_answer_is_cut_for_its_eos_alone(make: Any, learned: list[int] | None) -> None:
    """Of the four tokens there are as many as fit."""
    for room, count in ((6, 0), (7, 1), (9, 3), (10, 4), (11, 4)):
        (example,) = make(max_length=room)
        assert example.input_ids.tolist()[:6] == [1, 1, 2, 3, 4, EOS]
        assert len(example.input_ids) == 6 + count
        if learned:
            assert example.input_ids[example.response_mask].tolist() == learned
            assert example.hidden == 1 + count


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("make", [void, rainbow])
def test_an_answer_that_is_cut_has_no_end(make: Any) -> None:
    (example,) = make(max_length=4, on_too_long="clip_response")
    assert example.input_ids.tolist() == [1, 1, 2, 3]
    assert (example.tail, example.hidden) == (0, 0)
    (example,) = make(max_length=5, on_too_long="clip_response", eos_after_cut=True)
    assert example.input_ids.tolist() == [1, 1, 2, 3, EOS]
    assert example.tail == 1
    (example,) = make(max_length=5, on_too_long="clip_prompt")
    assert example.input_ids.tolist() == [1, 2, 3, 4, EOS]
    assert make(max_length=5, on_too_long="skip") == []


@pytest.mark.usefixtures("drawn")
def test_only_the_last_piece_of_a_document_has_an_end() -> None:
    examples = void(of=item(0, 5), max_length=4, on_too_long="split")
    assert [example.input_ids.tolist() for example in examples] == [
        [2, 3, 4, 5],
        [6, EOS, VOID, VOID],
    ]
    assert [example.hidden for example in examples] == [0, 3]


@pytest.mark.usefixtures("drawn")
def test_only_the_last_answer_of_several_has_an_end() -> None:
    two = {"input_ids": [1, 2, 1, 3], "response_mask": [False, True, False, True]}
    (example,) = void(of=two, max_length=20)
    assert example.input_ids.tolist() == [1, 2, 1, 3, EOS, *[VOID] * 4]
    assert example.response_mask.tolist() == [False, True, False, True, True, *[False] * 4]


@pytest.mark.usefixtures("drawn")
def test_what_the_hook_corrupts_has_no_end_and_weights_are_those_of_the_last_token() -> None:
    (example,) = void(of=item(1, 2, noisy_ids=[1, 5, 6]))
    assert example.input_ids.tolist() == [1, 2, 3]
    assert (example.tail, example.hidden) == (0, 0)
    (example,) = void(of=item(1, 2, loss_weights=[0, 1, 3]), max_length=6)
    assert example.loss_weights is not None
    assert example.loss_weights.tolist() == [0, 1, 3, 3, 3, 3]


def test_the_number_is_uniform_and_keyed() -> None:
    """The same when a row is read again; another for each epoch, row and part."""
    encode_row = encoder(
        lambda *_: [item(0, 1), item(0, 1)], max_length=9, end="void", end_ids=(VOID,)
    )
    counts = {}
    for line in range(600):
        for epoch in range(2):
            at = Row("s.jsonl", line=line, byte=0, text=b"{}", path="s.jsonl")
            for example in encode_row(at, epoch).examples:
                counts[line, epoch, example.part] = example.num_void
            again = encode_row(at, epoch).examples
            assert again[1].num_void == counts[line, epoch, 1]
    shares = Counter(counts.values())
    assert sorted(shares) == [0, 1, 2, 3, 4]
    assert all(abs(share / len(counts) - 1 / 5) < 0.03 for share in shares.values())
    for other in ((0, 1, 0), (1, 0, 0), (0, 0, 1)):
        pairs = [
            (count, counts.get((line + other[0], epoch + other[1], part + other[2])))
            for (line, epoch, part), count in counts.items()
        ]
        same = [one == two for one, two in pairs if two is not None]
        assert sum(same) / len(same) == pytest.approx(1 / 5, abs=0.05)


@given(room=st.integers(1, 30), row_key=st.integers(0, 2**64 - 1), part=st.integers(0, 3))
def test_a_tail_fits_its_room(room: int, row_key: int, part: int) -> None:
    for end in ("void", "rainbow"):
        tail = AnswerEnd(end, EOS, CYCLE[:1] if end == "void" else CYCLE, 20).tail(  # type: ignore[arg-type]
            room, row_key, part
        )
        assert 1 <= len(tail.ids) <= min(room, 21)
        assert tail.ids[0] == EOS and EOS not in tail.ids[1:]
        assert (tail.num_learned, tail.num_hidden) == (
            (1, len(tail.ids)) if end == "void" else (len(tail.ids), 0)
        )
    assert len(NO_TAIL.ids) == NO_TAIL.num_learned == NO_TAIL.num_hidden == 0


@pytest.mark.parametrize(
    ("returned", "token"),
    [(item(2, 7), 7), ({"input_ids": [8, 2], "response_mask": [False, True]}, 8)],
)
def test_a_row_with_a_token_of_the_end_is_a_bad_row(returned: object, token: int) -> None:
    with pytest.raises(BadRowError) as caught:
        encoder(lambda *_: returned, max_length=20, end="rainbow", end_ids=CYCLE)(row())
    assert caught.value.reason == "hook_returned"
    assert str(caught.value) == (
        f"s.jsonl:3 (byte 70): token {token} is in the example: data.end: rainbow puts it after"
        " answers, and samplers never write it; take the token out, or set data.rainbow_token_ids"
        " to what no text has"
    )


def config(**data: Any) -> DataConfig:
    return DataConfig(train="d", **data)


def test_the_ids_are_the_network_s_or_the_config_s() -> None:
    assert end_token_ids(config(end=3), OFFICIAL) == ()
    assert end_token_ids(config(end="batch_max"), OFFICIAL) == ()
    assert end_token_ids(config(end="void"), OFFICIAL) == (126084,)
    assert end_token_ids(config(end="void", void_token_id=5), OFFICIAL) == (5,)
    assert end_token_ids(config(end="rainbow"), OFFICIAL) == tuple(range(126084, 126091))
    assert end_token_ids(config(end="rainbow", rainbow_token_ids=(5, 4)), OFFICIAL) == (5, 4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"end": "void"},
            "data.end: void: no token is known that this network's tokenizer reserves; set"
            " data.void_token_id to ids that no text has",
        ),
        (
            {"end": "rainbow"},
            "data.end: rainbow: no token is known that this network's tokenizer reserves; set"
            " data.rainbow_token_ids to ids that no text has",
        ),
        (
            {"end": "void", "void_token_id": 100},
            "data.void_token_id: must be below vocab_size, 100, got 100",
        ),
        (
            {"end": "void", "void_token_id": 1},
            "data.void_token_id: 1 is the EOS token; take an id that nothing uses",
        ),
        (
            {"end": "void", "void_token_id": 3},
            "data.void_token_id: 3 is the padding token; take an id that nothing uses",
        ),
        (
            {"end": "rainbow", "rainbow_token_ids": (2, 7, 100)},
            "data.rainbow_token_ids: 2 is the mask token; take an id that nothing uses\n"
            "data.rainbow_token_ids: must be below vocab_size, 100, got 100",
        ),
        (
            {"end": "rainbow", "rainbow_token_ids": (7, 9, 7)},
            "data.rainbow_token_ids: each must be there once, got [7, 9, 7]",
        ),
    ],
)
def test_ids_that_cannot_be(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        end_token_ids(config(**data), IDS)
    assert str(caught.value) == message


def test_a_token_that_the_tokenizer_uses_is_refused(tmp_path: Path) -> None:
    write_demo(tmp_path)
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|reserved_token_0|>"]})
    reserved, ordinary = tokenizer.convert_tokens_to_ids(["<|reserved_token_0|>", "a"])
    (header,) = tokenizer.convert_tokens_to_ids(["<|eot_id|>"])
    require_reserved(tokenizer, (reserved,), "data.void_token_id")
    # A row of the embedding that has no token.
    require_reserved(tokenizer, (len(tokenizer) + 5,), "data.void_token_id")
    uses = {
        ordinary: "ordinary text may have it",
        header: "the chat template writes it",
        tokenizer.bos_token_id: "the tokenizer names it as one of its special tokens",
    }
    for token_id, use in uses.items():
        with pytest.raises(ConfigError) as caught:
            require_reserved(tokenizer, (reserved, token_id), "data.rainbow_token_ids")
        token = tokenizer.convert_ids_to_tokens(token_id)
        assert str(caught.value) == (
            f"data.rainbow_token_ids: token {token_id} ({token!r}) is in use: {use}; take another"
        )
    ids = TokenIds(len(tokenizer), tokenizer.eos_token_id, tokenizer.mask_token_id)
    made = answer_end_of(config(end="void", void_token_id=reserved, end_tokens=5), ids, tokenizer)
    assert made == AnswerEnd("void", tokenizer.eos_token_id, (reserved,), 5)
    with pytest.raises(ConfigError, match="ordinary text"):
        answer_end_of(config(end="void", void_token_id=ordinary), ids, tokenizer)


ENDS: dict[str, tuple[int | str, tuple[int, ...]]] = {
    "1": (1, ()),
    "3": (3, ()),
    "batch_max": ("batch_max", ()),
    "void": ("void", (VOID,)),
    "rainbow": ("rainbow", CYCLE),
}


@pytest.mark.parametrize("name", ENDS)
@given(prompt=st.integers(0, 5), response=st.integers(1, 4), block=st.integers(1, 8))
def test_tails_reach_to_the_end_of_a_block(
    name: str, prompt: int, response: int, block: int
) -> None:
    end, end_ids = ENDS[name]
    most = 24 // block * block
    encode_row = encoder(
        lambda *_: item(prompt, response), max_length=most, end=end, end_ids=end_ids,  # type: ignore[arg-type]
        on_too_long="clip_response",
    )  # fmt: skip
    plain = encode_row(row()).examples
    filled = replace(encode_row, answer_end=replace(encode_row.answer_end, block_length=block))
    for one, other in zip(filled(row()).examples, plain, strict=True):
        length = len(other.input_ids)
        assert one.block_length == block
        assert one.input_ids[:length].tolist() == other.input_ids.tolist()
        added = one.input_ids[length:].tolist()
        if not other.tail:
            # It was cut: its end is not learned.
            assert not added
            continue
        assert len(one.input_ids) == -(-length // block) * block <= most
        assert set(added) <= set(end_ids or (EOS,))
        learned = end != "void"
        assert (one.response_mask[length:] == learned).all()
        assert one.tail == other.tail + (len(added) if learned else 0)
        assert one.hidden == other.hidden + (0 if learned else len(added))
