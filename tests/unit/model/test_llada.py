"""What the network promises beyond parity: chosen positions, recomputation, padding, heads."""

import pytest
import torch
from torch import Tensor

from llada_sft.model import Network, NetworkConfig, build_model
from llada_sft.model.layers.kept_bytes import Checkpointing


def gradients(model: Network, ids: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    torch.autograd.backward(model(ids).logits.float().logsumexp(-1).sum())
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_head_at_chosen_positions(golden: Network, expected: dict[str, Tensor]) -> None:
    ids = expected["input_ids"]
    positions = torch.tensor([0, 3, 41, 79, 119])
    chosen = golden(ids, positions=positions).logits
    torch.testing.assert_close(chosen, golden(ids).logits.flatten(0, 1)[positions])


def test_no_positions_is_an_empty_result_with_gradients(golden: Network) -> None:
    logits = golden(torch.zeros(1, 4).long(), positions=torch.zeros(0).long()).logits
    assert logits.shape == (0, 512)
    torch.autograd.backward(logits.sum())
    assert all(p.grad is not None and not p.grad.any() for p in golden.parameters())


@pytest.mark.parametrize("checkpointing", ["selective", "full", ("none", "selective", "full")])
def test_activation_checkpointing_gives_the_same_gradients(
    golden: Network,
    expected: dict[str, Tensor],
    checkpointing: Checkpointing | tuple[Checkpointing, ...],
) -> None:
    kept = gradients(golden, expected["input_ids"])
    golden.set_activation_checkpointing(checkpointing)
    recomputed = gradients(golden, expected["input_ids"])
    assert kept.keys() == recomputed.keys()
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_padding_changes_nothing_at_real_tokens(
    golden: Network, expected: dict[str, Tensor], dtype: torch.dtype
) -> None:
    ids = expected["input_ids"].clone()
    ids[0, 25:] = 505
    attention_mask = torch.ones_like(ids, dtype=dtype)
    attention_mask[0, 25:] = 0
    logits = golden(ids, attention_mask).logits
    torch.testing.assert_close(logits[:1, :25], golden(ids[:1, :25]).logits, atol=2e-5, rtol=0)
    torch.testing.assert_close(logits[1:], golden(ids[1:]).logits, atol=2e-5, rtol=0)


def test_attention_looks_in_both_directions(golden: Network) -> None:
    ids = torch.arange(8)[None]
    changed = ids.clone()
    changed[0, -1] = 77
    assert not torch.allclose(golden(ids).logits[0, 0], golden(changed).logits[0, 0])


def test_grouped_heads_equal_repeated_ones(small_config: NetworkConfig) -> None:
    grouped = build_model(small_config.changed(n_kv_heads=2))
    full = build_model(small_config)
    state = grouped.state_dict()
    for name in [n for n in state if n.endswith(("k_proj.weight", "v_proj.weight"))]:
        assert state[name].shape == (16, 32)
        state[name] = state[name].view(2, 8, 32).repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(state)
    ids = torch.arange(10)[None]
    torch.testing.assert_close(grouped(ids).logits, full(ids).logits)


def test_padding_of_the_vocabulary_has_logits_too(small_config: NetworkConfig) -> None:
    padded = small_config.changed(embedding_size=128)
    assert build_model(padded)(torch.arange(4)[None]).logits.shape == (1, 4, 128)


def test_random_weights_depend_on_seed_and_name(small_config: NetworkConfig) -> None:
    model, again = build_model(small_config, seed=3), build_model(small_config, seed=3)
    other = build_model(small_config, seed=4)
    for (name, a), b, c in zip(
        model.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(a, b)
        if a.dim() == 1:
            assert (a == 1).all()
        else:
            assert not torch.equal(a, c)
            residual = ".blocks." in name and name.endswith(("attn_out.weight", "ff_out.weight"))
            assert a.std().item() == pytest.approx(0.01 if residual else 0.02, rel=0.1)
    q, k = (model.get_parameter(f"model.transformer.blocks.0.{n}_proj.weight") for n in "qk")
    assert not torch.equal(q, k)
