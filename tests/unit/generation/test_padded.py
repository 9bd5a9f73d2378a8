"""`model.generate`, as who knows transformers calls it."""

import pytest
import torch

from llada_sft.generation import SamplerSettings, generate
from llada_sft.model import Network, load_model
from tests.unit.generation.conftest import GOLDEN

PROMPTS = [[7, 8, 9], [10], [11, 12]]
PAD = 505


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    rows, masks = [], []
    for prompt in PROMPTS:
        fill = [PAD] * (3 - len(prompt))
        rows.append([*fill, *prompt] if side == "left" else [*prompt, *fill])
        kept = [1] * len(prompt)
        masks.append([0] * len(fill) + kept if side == "left" else kept + [0] * len(fill))
    return torch.tensor(rows), torch.tensor(masks)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("sampler", ["official", "threshold"])
def test_padding_on_either_side_gives_the_same_answers(
    golden: Network, side: str, sampler: str
) -> None:
    ids, mask = padded(side)
    output = golden.generate(ids, mask, 8, sampler=sampler, block_length=4, mask_token_id=510)
    assert torch.equal(output[:, :3], ids)
    settings = SamplerSettings(sampler, gen_length=8, block_length=4, mask_token_id=510)  # type: ignore[arg-type]
    for row, answer in zip(
        output[:, 3:].tolist(), generate(golden, PROMPTS, settings), strict=True
    ):
        assert row[: len(answer.ids)] == answer.ids
        assert set(row[len(answer.ids) :]) <= {PAD}


def test_short_answers_need_no_block_length(golden: Network) -> None:
    output = golden.generate(torch.tensor([[7, 8]]), max_new_tokens=5, mask_token_id=510)
    assert output.shape == (1, 7)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"do_sample": True}, "do_sample"),
        ({"temperature": -1}, "temperature must be"),
        ({"attention_mask": torch.ones(1, 3)}, "attention_mask must have the shape"),
    ],
)
def test_a_mistake_is_named(golden: Network, options: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        golden.generate(torch.tensor([[7, 8]]), max_new_tokens=4, mask_token_id=510, **options)


def test_a_network_that_attends_in_blocks_keeps_its_block_length() -> None:
    model = load_model(GOLDEN / "tiny_llada2_moe", torch.float64)
    ids, mask = padded("left")
    output = model.generate(ids, mask, 20, sampler="llada2", mask_token_id=510, threshold=0.2)
    settings = SamplerSettings("llada2", gen_length=20, mask_token_id=510, threshold=0.2)
    answers = generate(model, PROMPTS, settings)
    for row, answer in zip(output[:, 3:].tolist(), answers, strict=True):
        assert row[: len(answer.ids)] == answer.ids
