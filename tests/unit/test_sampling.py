"""Answers of a tiny random network: in the order of the prompts, cut at the first EOS."""

from typing import Any

import pytest
import torch

from llada_sft import sampling
from llada_sft.data.records.chat_tokens import encode_prompt
from llada_sft.demo.data import make_tokenizer
from llada_sft.diffusion.generate import generate
from llada_sft.model import Network, NetworkConfig, build_model
from llada_sft.sampling import SamplingSettings, answer

PROMPTS = ["reverse abcd", "reverse ab", "reverse efgh", "a", "reverse cd"]
SETTINGS = SamplingSettings(steps=4, gen_length=8, block_length=4)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Network:
    config = NetworkConfig.from_size(
        d_model=16,
        n_layers=1,
        n_heads=2,
        mlp_hidden_size=24,
        max_sequence_length=64,
        vocab_size=len(tokenizer),
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model = build_model(config, seed=3)
    with torch.no_grad():
        # So that what it says depends on what it is asked, and is letters and blanks.
        for parameter in model.parameters():
            parameter.mul_(8.0)
        model.get_output_embeddings().weight[: tokenizer.convert_tokens_to_ids(" ")] = 0.0
    return model.eval()


def test_answers_come_in_the_order_of_their_prompts(model: Network, tokenizer: Any) -> None:
    together = answer(model, tokenizer, PROMPTS, SETTINGS)
    alone = [answer(model, tokenizer, [prompt], SETTINGS)[0] for prompt in PROMPTS]
    assert together == alone
    assert len(set(together)) > 1
    assert answer(model, tokenizer, PROMPTS[::-1], SETTINGS) == together[::-1]


def test_an_answer_is_what_the_sampler_says(model: Network, tokenizer: Any) -> None:
    ids = encode_prompt([{"role": "user", "content": "reverse abcd"}], tokenizer)
    output = generate(
        model,
        torch.tensor([ids]),
        mask_token_id=tokenizer.mask_token_id,
        **vars(SETTINGS),
    )
    said = output[0, len(ids) :].tolist()
    if tokenizer.eos_token_id in said:
        said = said[: said.index(tokenizer.eos_token_id)]
    expected = tokenizer.decode(said, skip_special_tokens=True)
    assert answer(model, tokenizer, ["reverse abcd"], SETTINGS) == [expected]


def test_what_the_model_suppresses_is_never_said(model: Network, tokenizer: Any) -> None:
    said = answer(model, tokenizer, PROMPTS, SETTINGS)
    used = sorted({tokenizer.convert_tokens_to_ids(letter) for text in said for letter in text})
    assert used
    model.config.suppress_tokens = (used[0], used[-1])
    try:
        again = answer(model, tokenizer, PROMPTS, SETTINGS)
    finally:
        model.config.suppress_tokens = ()
    banned = set(tokenizer.convert_ids_to_tokens([used[0], used[-1]]))
    assert banned & set("".join(said)) and not banned & set("".join(again))


def test_no_prompts_have_no_answers(model: Network, tokenizer: Any) -> None:
    assert answer(model, tokenizer, [], SETTINGS) == []


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (["c", "b", "<|endoftext|>", "a", "<|endoftext|>"], "cb"),
        (["<|endoftext|>", "a"], ""),
        (["c", "b", "a"], "cba"),
        (["c", "<|eot_id|>", " ", "a"], "c a"),
    ],
)
def test_an_answer_ends_at_the_first_eos(
    model: Network,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    said: list[str],
    expected: str,
) -> None:
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(said)])

    def says(_: object, prompt_ids: torch.Tensor, **__: object) -> torch.Tensor:
        return torch.cat([prompt_ids, ids], dim=1)

    monkeypatch.setattr(sampling, "generate", says)
    assert answer(model, tokenizer, ["a"], SETTINGS) == [expected]
