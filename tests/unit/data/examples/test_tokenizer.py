"""The tokenizer of a model directory: there, whole, and with the mask token."""

import os
from pathlib import Path
from typing import Any

import pytest

from llada_sft.data.examples.tokenizer import load_tokenizer
from llada_sft.errors import DataError


@pytest.fixture
def directory(tmp_path: Path, tokenizer: Any) -> Path:
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def refused(directory: Path, mask_token_id: int | None) -> str:
    with pytest.raises(DataError) as caught:
        load_tokenizer(directory, mask_token_id)
    return str(caught.value)


def test_it_is_what_was_saved(directory: Path, tokenizer: Any) -> None:
    for mask_token_id in (None, tokenizer.mask_token_id):
        loaded = load_tokenizer(directory, mask_token_id)
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert loaded.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("set_before", [None, "true"])
def test_threads_are_for_who_asks_for_them(
    directory: Path, monkeypatch: pytest.MonkeyPatch, set_before: str | None
) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    if set_before is not None:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", set_before)
    load_tokenizer(directory)
    assert os.environ["TOKENIZERS_PARALLELISM"] == (set_before or "false")


def test_there_is_none(tmp_path: Path) -> None:
    assert refused(tmp_path, None) == (
        f"{tmp_path}/tokenizer.json: no such file; "
        "the tokenizer belongs next to the model's config.json"
    )


@pytest.mark.parametrize("content", ["", "{", "{}", '{"model": {"type": "BPE"}}'])
def test_it_is_damaged(directory: Path, content: str) -> None:
    (directory / "tokenizer.json").write_text(content)
    message = refused(directory, None)
    assert message.startswith(f"{directory}: tokenizer cannot be loaded: ")
    assert "\n" not in message


def test_it_names_no_mask_token(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str())
    assert refused(tmp_path, None) == (
        f"{tmp_path}: tokenizer has no mask token; name it in tokenizer_config.json ('mask_token')"
    )
    assert load_tokenizer(tmp_path, tokenizer.mask_token_id).mask_token_id is None


def test_the_models_mask_token_is_not_in_it(directory: Path) -> None:
    assert refused(directory, 126336) == (
        f"{directory}/tokenizer.json: tokenizer has no mask token: id 126336 is not in it"
    )
