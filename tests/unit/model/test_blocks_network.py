"""Networks that attend in blocks: alone, padded and packed; what no position may see; caches."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llada_sft.model import Network, NetworkConfig, build_model, load_model
from llada_sft.model.layers import attention
from llada_sft.model.layers import blocks as blocks_module
from llada_sft.model.layers.activations import Checkpointing
from llada_sft.model.layers.attention import Sequences
from llada_sft.model.layers.blocks import Blocks
from llada_sft.model.layers.cache import KeyValueCache
from tests.unit.generation.conftest import FAMILIES, GOLDEN
from tests.unit.model.dense_blocks import dense_attention, dense_mask

LENGTHS = (40, 8, 24, 13)
BLOCKS = Blocks(8, doubled=True)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Network:
    return load_model(GOLDEN / request.param, torch.float64)


def random_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 500, shape, generator=torch.Generator().manual_seed(seed))


def halves() -> tuple[list[Tensor], list[Tensor]]:
    """Draw the noisy and the clean half of each document: a third of the tokens differs."""
    clean = [random_ids(1, length, seed=length) for length in LENGTHS]
    noisy = [torch.where(random_ids(*ids.shape, seed=1) % 3 == 0, 510, ids) for ids in clean]
    return noisy, clean


def packed(noisy: list[Tensor], clean: list[Tensor]) -> Tensor:
    return torch.cat([*noisy, *clean], dim=1)


@torch.no_grad()
@pytest.mark.parametrize("doubled", [False, True])
def test_the_network_equals_one_with_dense_masks(
    model: Network, doubled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = Blocks(8, doubled)
    noisy, clean = halves()
    ids = packed(noisy, clean) if doubled else torch.cat(clean, dim=1)
    found = model(ids, sequences=Sequences(LENGTHS), blocks=blocks).logits
    mask = dense_mask(blocks, LENGTHS)
    monkeypatch.setattr(
        attention, "attend_in_blocks", lambda q, k, v, _: dense_attention(q, k, v, mask)
    )
    expected = model(ids, sequences=Sequences(LENGTHS), blocks=blocks).logits
    # Norms round to fp32.
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def logits_alone(model: Network) -> Tensor:
    rows = zip(*halves(), strict=True)
    return torch.cat([model(torch.cat(row, 1), blocks=BLOCKS).logits[0] for row in rows])


def logits_packed(model: Network) -> Tensor:
    ids = packed(*halves())
    logits = model(ids, sequences=Sequences(LENGTHS), blocks=BLOCKS).logits[0]
    noisy, clean = (half.split(LENGTHS) for half in logits.chunk(2))
    return torch.cat([torch.cat(row) for row in zip(noisy, clean, strict=True)])


def logits_padded(model: Network) -> Tensor:
    width = max(LENGTHS)
    ids = torch.full((len(LENGTHS), 2, width), 505)
    for row, pair in zip(ids, zip(*halves(), strict=True), strict=True):
        for half, own in zip(row, pair, strict=True):
            half[: own.shape[1]] = own
    real = torch.arange(width) < torch.tensor(LENGTHS)[:, None]
    logits = model(ids.flatten(1), attention_mask=real, blocks=BLOCKS).logits
    return logits[torch.cat([real, real], dim=1)]


def gradient(model: Network, logits: Tensor) -> Tensor:
    model.zero_grad()
    torch.autograd.backward(logits.logsumexp(-1).sum())
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("together", [logits_packed, logits_padded])
@pytest.mark.parametrize("family", FAMILIES)
def test_alone_padded_and_packed_are_the_same(
    family: str, together: Callable[[Network], Tensor]
) -> None:
    """In fp32: logits to 1e-5 of the largest, gradients to 1e-4."""
    model = load_model(GOLDEN / family)
    alone, found = logits_alone(model), together(model)
    assert (found - alone).abs().max() < 1e-5 * alone.abs().max()
    expected, got = gradient(model, alone), gradient(model, found)
    assert (got - expected).norm() < 1e-4 * expected.norm()


def changed(model: Network, noisy_at: int | None, clean_at: int | None) -> list[int]:
    """Return which positions of a pack see a token of document 0 that is changed."""
    noisy, clean = halves()
    before, after = packed(noisy, clean), packed(noisy, clean)
    places = [noisy_at, None if clean_at is None else sum(LENGTHS) + clean_at]
    for place in places:
        if place is not None:
            after[0, place] = (after[0, place] + 7) % 500
    logits = [
        model(ids, sequences=Sequences(LENGTHS), blocks=BLOCKS).logits[0] for ids in (before, after)
    ]
    return (logits[0] - logits[1]).abs().amax(-1).nonzero().flatten().tolist()


@torch.no_grad()
def test_what_sees_a_noisy_and_a_clean_token(model: Network) -> None:
    """Block 1 of document 0, positions 8 to 15: its noisy token changes the noisy block alone; its
    clean token neither the noisy copy, nor anything before, nor another document.
    """
    total, shift = sum(LENGTHS), int(model.architecture.shifted)
    # A network that predicts the next token has the first prediction of the next block, too.
    assert changed(model, 9, None) == list(range(8 + shift, 16 + shift))
    noisy, clean = range(16 + shift, 40), range(total + 8 + shift, total + 40)
    assert changed(model, None, 9) == [*noisy, *clean]


@torch.no_grad()
@pytest.mark.parametrize("doubled", [False, True])
def test_padding_is_not_seen(model: Network, doubled: bool) -> None:
    """The second row ends within a block."""
    blocks, real = Blocks(8, doubled), torch.arange(40) < torch.tensor([[40], [13]])
    ids = random_ids(2, blocks.halves * 40)
    both = torch.cat([real] * blocks.halves, dim=1)
    logits = [
        model(torch.where(both, ids, padding), attention_mask=real, blocks=blocks).logits[both]
        for padding in (505, 3)
    ]
    assert torch.equal(*logits)


@torch.no_grad()
def test_a_cache_of_finished_blocks_is_exact(model: Network) -> None:
    """Rows computed at once, and again block by block against the cache of all."""
    ids, blocks = random_ids(2, 37), Blocks(8)
    whole = model(ids, blocks=blocks).logits
    cache = KeyValueCache(model.architecture.num_layers)
    torch.testing.assert_close(model(ids, cache=cache, blocks=blocks).logits, whole)
    # Later tokens do not matter to a block.
    other = torch.cat([ids[:, :24], random_ids(2, 13, seed=1)], dim=1)
    model(other, cache=cache, blocks=blocks)
    for start in (8, 16):
        places = torch.arange(start, start + 8).expand(2, -1)
        part = model(ids[:, start : start + 8], cache=cache, places=places, blocks=blocks).logits
        # The first of a network that predicts the next token lacks the one before it.
        torch.testing.assert_close(part[:, 1:], whole[:, start + 1 : start + 8], atol=1e-6, rtol=0)


@torch.no_grad()
def test_padding_in_a_cache_is_not_seen(model: Network) -> None:
    ids, blocks = random_ids(2, 32), Blocks(8)
    real = torch.arange(32) < torch.tensor([[32], [13]])
    cache = KeyValueCache(model.architecture.num_layers)
    model(ids, attention_mask=real, cache=cache, blocks=blocks)
    places = torch.arange(8, 16).expand(2, -1)
    part = model(
        ids[:, 8:16], attention_mask=real, cache=cache, places=places, blocks=blocks
    ).logits
    alone = model(ids[1:, :13], blocks=blocks).logits
    torch.testing.assert_close(part[1, 1:5], alone[0, 9:13], atol=1e-6, rtol=0)


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_what_is_computed_again_has_the_same_gradients(checkpointing: Checkpointing) -> None:
    model = load_model(GOLDEN / "tiny_llada_moe")
    expected = gradient(model, logits_packed(model))
    model.set_activation_checkpointing(checkpointing)
    got = gradient(model, logits_packed(model))
    assert (got - expected).norm() < 1e-5 * expected.norm()


def test_devices_whose_kernel_keeps_nothing_compute_chunks_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = load_model(GOLDEN / "tiny_llada")
    expected = gradient(model, logits_packed(model))
    monkeypatch.setattr(blocks_module, "new_results", lambda q: [torch.empty_like(q)])
    got = gradient(model, logits_packed(model))
    assert (got - expected).norm() < 1e-5 * expected.norm()


def test_arguments_that_do_not_go_together(small_config: NetworkConfig) -> None:
    model = build_model(small_config)
    with pytest.raises(ValueError, match=r"blocks: input_ids must be two halves .*, got \[1, 7\]"):
        model(torch.zeros(1, 7).long(), blocks=BLOCKS)
    with pytest.raises(ValueError, match=r"sequences: input_ids must be \[1, 12\], .*\[1, 6\]"):
        model(torch.zeros(1, 6).long(), sequences=Sequences((4, 2)), blocks=BLOCKS)
    with pytest.raises(ValueError, match="blocks: rows of two halves have no cache"):
        model(torch.zeros(1, 6).long(), cache=KeyValueCache(2), blocks=BLOCKS)
