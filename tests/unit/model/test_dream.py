"""Dream, whose predictions are shifted, against the official code's numbers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llada_sft.config.sections.objective import ObjectiveConfig
from llada_sft.errors import ConfigError
from llada_sft.model import Network, load_model
from llada_sft.model.layers.attention import Sequences
from llada_sft.model.settings import require_objective

GOLDEN = Path(__file__).parents[2] / "golden" / "tiny_dream"


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(GOLDEN / "expected.safetensors")
    return tensors


@pytest.fixture
def dream() -> Network:
    return load_model(GOLDEN)


def unshifted(logits: Tensor) -> Tensor:
    """Undo the shift: what the network computes at each position but the last."""
    return logits[:, 1:]


def test_it_is_not_trained_in_blocks(dream: Network) -> None:
    objective = ObjectiveConfig(kind="block", block_length=8)
    with pytest.raises(ConfigError) as caught:
        require_objective(GOLDEN, dream.architecture, objective)
    assert str(caught.value) == (
        f"objective.kind: {GOLDEN} predicts each token at the position before it, which may be in"
        " another block, got block; set it to full"
    )


def test_logits(dream: Network, expected: dict[str, Tensor]) -> None:
    logits = dream(expected["input_ids"]).logits
    official = expected["logits"]
    torch.testing.assert_close(unshifted(logits), official[:, :-1], atol=1e-5, rtol=0)
    # Nothing is before the first token: it is predicted where it stands.
    torch.testing.assert_close(logits[:, 0], official[:, 0], atol=1e-5, rtol=0)


def test_rows_padded_in_front(dream: Network, expected: dict[str, Tensor]) -> None:
    mask = expected["pad_attention_mask"].bool()
    logits = unshifted(dream(expected["input_ids"], attention_mask=mask).logits)
    official, real = expected["pad_logits_valid"][:, :-1], mask[:, :-1] & mask[:, 1:]
    torch.testing.assert_close(logits[real], official[real], atol=1e-5, rtol=0)


def test_loss_and_gradients(dream: Network, expected: dict[str, Tensor]) -> None:
    ids, masked, noisy = (expected[name] for name in ("input_ids", "sft_masked", "sft_noisy_ids"))
    masked = masked.bool()
    # 1/t at masked positions, divided by the number of them in the batch.
    weights = (1 / expected["sft_t"].reshape(-1, 1)).expand(ids.shape) / masked.sum()
    loss = dream(
        noisy,
        positions=masked.flatten().nonzero()[:, 0],
        targets=ids[masked],
        coefficients=weights[masked].float(),
    ).loss
    assert loss.item() == pytest.approx(expected["sft_loss_original"].item(), rel=1e-5)
    torch.autograd.backward(loss)
    gradients = {name: p.grad for name, p in dream.named_parameters() if p.grad is not None}
    for name, gradient in gradients.items():
        if f"grad.{name}" not in expected:
            continue
        official = expected[f"grad.{name}"]
        own = gradient if gradient.shape == official.shape else gradient.flatten()[:4096]
        assert (own - official).abs().max() <= 1e-5 * official.abs().max(), name
    rows = expected["grad_embed_rows_ids"]
    embedding = gradients["model.embed_tokens.weight"]
    torch.testing.assert_close(embedding[rows], expected["grad_embed_rows"], atol=1e-5, rtol=1e-4)
    assert not embedding[505].any()
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert norm.item() == pytest.approx(expected["grad_norm"].item(), rel=1e-5)


def test_packed_sequences_are_each_shifted_by_themselves(
    dream: Network, expected: dict[str, Tensor]
) -> None:
    ids = expected["input_ids"]
    lengths = (17, 40, 23)
    pieces = [ids[row, :length] for row, length in enumerate(lengths)]
    packed = dream(torch.cat(pieces)[None], sequences=Sequences(lengths)).logits[0]
    alone = [dream(piece[None]).logits[0] for piece in pieces]
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-5, rtol=0)
