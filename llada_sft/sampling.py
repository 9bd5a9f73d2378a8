"""Answers from an exported model: prompts -> token ids -> the official sampler -> text."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from llada_sft.data.examples.tokenizer import load_tokenizer
from llada_sft.data.records.chat_tokens import encode_prompt
from llada_sft.diffusion.generate import generate
from llada_sft.errors import ConfigError
from llada_sft.model.loading import load_model
from llada_sft.model.network import Network


@dataclass(frozen=True)
class SamplingSettings:
    """The sampler's knobs, by the official names."""

    steps: int = 128
    gen_length: int = 128
    block_length: int = 32
    temperature: float = 0.0
    cfg_scale: float = 0.0
    remasking: Literal["low_confidence", "random"] = "low_confidence"


def answer(
    model: Network, tokenizer: Any, prompts: Sequence[str], settings: SamplingSettings
) -> list[str]:
    """Answer each prompt, as one user turn; prompts of one length go through the model together.

    Args:
        model: In evaluation mode.
        tokenizer: The model's.
        prompts: Texts of the user.
        settings: For all of them.

    Returns:
        The responses up to their first EOS, in the order of the prompts.
    """
    encoded = [encode_prompt([{"role": "user", "content": text}], tokenizer) for text in prompts]
    by_length: dict[int, list[int]] = {}
    for number, ids in enumerate(encoded):
        by_length.setdefault(len(ids), []).append(number)
    responses = [""] * len(prompts)
    for length, numbers in by_length.items():
        prompt_ids = torch.tensor([encoded[number] for number in numbers], device=model.device)
        output = generate(
            model,
            prompt_ids,
            mask_token_id=model.config.mask_token_id,
            suppress_tokens=model.config.suppress_tokens,
            **vars(settings),
        )
        for number, ids in zip(numbers, output[:, length:].tolist(), strict=True):
            responses[number] = _decode(ids, tokenizer, model.config.eos_token_id)
    return responses


def _decode(ids: list[int], tokenizer: Any, eos_token_id: int) -> str:
    end = ids.index(eos_token_id) if eos_token_id in ids else len(ids)
    text: str = tokenizer.decode(ids[:end], skip_special_tokens=True)
    return text


def sample_command(args: Namespace) -> None:
    """Run `llada-sft sample`: print the answer to each prompt.

    Raises:
        LladaSftError: The model cannot be loaded, or the settings do not fit together.
    """
    directory = Path(args.model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = load_model(directory, dtype, device)
    tokenizer = load_tokenizer(directory, model.config.mask_token_id, model.config.chat_template)
    settings = SamplingSettings(
        steps=args.steps,
        gen_length=args.gen_length,
        block_length=args.block_length,
        temperature=args.temperature,
        cfg_scale=args.cfg_scale,
        remasking=args.remasking,
    )
    torch.manual_seed(args.seed)
    try:
        responses = answer(model, tokenizer, args.prompt, settings)
    except ValueError as error:
        raise ConfigError(f"sample: {error}") from None
    for response in responses:
        print(response)
