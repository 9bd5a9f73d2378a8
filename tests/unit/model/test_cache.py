"""Passes over some positions, against the keys and values of all others."""

import pytest
import torch
from torch import Tensor

from llada_sft.model import Network, load_model
from llada_sft.model.layers.cache import KeyValueCache
from tests.unit.generation.conftest import FAMILIES, GOLDEN


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Network:
    return load_model(GOLDEN / request.param, torch.float64)


def random_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 500, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("firsts", [(6, 6), (1, 9)])
def test_a_pass_over_some_positions_equals_one_over_all(
    model: Network, firsts: tuple[int, int]
) -> None:
    """As long as no token has changed since the pass that filled the cache."""
    ids, cache = random_ids(2, 16), KeyValueCache(model.architecture.num_layers)
    whole = model(ids, cache=cache).logits
    torch.testing.assert_close(whole, model(ids).logits)
    places = torch.tensor(firsts)[:, None] - 1 + torch.arange(5)
    part = model(ids.gather(1, places), cache=cache, places=places).logits
    # What is before the first one may be missing to its prediction.
    expected = torch.stack([row[own] for row, own in zip(whole, places, strict=True)])
    torch.testing.assert_close(part[:, 1:], expected[:, 1:], atol=1e-9, rtol=0)


@torch.no_grad()
def test_computed_positions_see_each_others_present_tokens(model: Network) -> None:
    ids, cache = random_ids(1, 12), KeyValueCache(model.architecture.num_layers)
    model(ids, cache=cache)
    changed = ids.clone()
    changed[:, 4:] = random_ids(1, 8, seed=1)
    places = torch.arange(3, 12)[None]
    part = model(changed[:, 3:], cache=cache, places=places).logits
    old = model(ids).logits[:, 3:]
    assert not torch.allclose(part[:, 1:], old[:, 1:], atol=1e-3)
    # Only the keys and values of the first three positions are old: much nearer than that.
    new = model(changed).logits[:, 3:]
    assert (part - new)[:, 1:].norm() < 0.5 * (part - old)[:, 1:].norm()


@torch.no_grad()
def test_rows_that_are_kept_have_their_own_keys_and_values(model: Network) -> None:
    ids, cache = random_ids(3, 10), KeyValueCache(model.architecture.num_layers)
    whole = model(ids, cache=cache).logits
    cache.keep(torch.tensor([0, 2]))
    places = torch.arange(4, 8).expand(2, -1)
    part = model(ids[[0, 2]].gather(1, places), cache=cache, places=places).logits
    torch.testing.assert_close(part[:, 1:], whole[[0, 2], 5:8], atol=1e-9, rtol=0)


@torch.no_grad()
def test_padding_is_not_looked_at(model: Network) -> None:
    ids = random_ids(2, 14)
    real = torch.arange(14) < torch.tensor([[9], [14]])
    cache = KeyValueCache(model.architecture.num_layers)
    model(ids, attention_mask=real, cache=cache)
    places = torch.arange(4, 8).expand(2, -1)
    logits = model(ids.gather(1, places), attention_mask=real, cache=cache, places=places).logits
    alone = model(ids[:1, :9]).logits
    torch.testing.assert_close(logits[0, 1:], alone[0, 5:8], atol=1e-9, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_side_of_the_padding_does_not_matter(model: Network, side: str) -> None:
    ids = random_ids(1, 9)
    padding, real = torch.zeros(1, 5).long(), torch.ones(1, 9).bool()
    order = [padding, ids] if side == "left" else [ids, padding]
    masks = [~real[:, :5], real] if side == "left" else [real, ~real[:, :5]]
    padded = model(torch.cat(order, 1), attention_mask=torch.cat(masks, 1)).logits
    own = padded[:, 5:] if side == "left" else padded[:, :9]
    # The first prediction of a network that predicts the next token has padding before it.
    first = int(model.architecture.shifted)
    torch.testing.assert_close(own[:, first:], model(ids).logits[:, first:], atol=1e-5, rtol=0)


def test_places_need_a_cache(model: Network) -> None:
    with pytest.raises(ValueError, match="places: the positions between them need a cache"):
        model(random_ids(1, 2), places=torch.tensor([[3, 4]]))
