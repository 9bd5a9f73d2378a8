"""What is computed again: by counting the operations of a forward and backward pass."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from llada_sft.model import NetworkConfig, build_model
from llada_sft.model.families import llada, llada2, llada_moe
from llada_sft.model.layers import activations
from llada_sft.model.layers.balance import Routing
from llada_sft.model.layers.kept_bytes import (
    Checkpointing,
    host_bytes,
    kept_bytes,
    most_kept,
    within_budget,
)

BLOCKS = 2
# Matrix products of a block's forward pass, but the last: its result is needed for nothing.
PRODUCTS = 6


class Operations(TorchDispatchMode):
    """Counts operations by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.counts[function.name().partition(".")[0]] += 1
        return function(*args, **(kwargs or {}))


def operations(config: NetworkConfig, checkpointing: Checkpointing) -> Counter[str]:
    model = build_model(config)
    model.set_activation_checkpointing(checkpointing)
    with Operations() as seen:
        logits: Tensor = model(torch.arange(20)[None]).logits
        torch.autograd.backward(logits.sum())
    return seen.counts


@pytest.mark.parametrize(
    ("checkpointing", "products", "activations"),
    [
        ("none", 0, 0),
        ("selective", 0, BLOCKS),
        ("full", PRODUCTS * BLOCKS, BLOCKS),
        ("offload", PRODUCTS * BLOCKS, BLOCKS),
    ],
)
def test_what_is_computed_again(
    small_config: NetworkConfig, checkpointing: Checkpointing, products: int, activations: int
) -> None:
    assert small_config.architecture.num_layers == BLOCKS
    kept = operations(small_config, "none")
    found = operations(small_config, checkpointing)
    assert found["aten::mm"] == kept["aten::mm"] + products
    assert found["aten::silu"] == kept["aten::silu"] + activations
    attention = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert kept[attention] == BLOCKS
    assert found[attention] == BLOCKS * (2 if checkpointing in ("full", "offload") else 1)


def test_without_gradients_nothing_is_prepared_for_them(small_config: NetworkConfig) -> None:
    model = build_model(small_config)
    model.set_activation_checkpointing("full")
    with torch.no_grad(), Operations() as seen:
        assert not model(torch.arange(20)[None]).logits.requires_grad
    assert seen.counts["aten::silu"] == BLOCKS


class Results(TorchDispatchMode):
    """Remembers the storages that operations return, but for those of weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.sizes: dict[int, tuple[StorageWeakRef, int]] = {}
        self._weights = {p.untyped_storage()._cdata for p in model.parameters()}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        results = function(*args, **(kwargs or {}))
        for result in results if isinstance(results, (tuple, list)) else (results,):
            if isinstance(result, Tensor):
                storage = result.untyped_storage()
                if storage._cdata not in self._weights:
                    self.sizes[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return results

    @property
    def alive(self) -> int:
        return sum(size for storage, size in self.sizes.values() if not storage.expired())


def test_inputs_of_blocks_that_wait_on_the_host(
    small_config: NetworkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only they do, each once; gradients are bit for bit those of `full`."""
    model, ids, found = build_model(small_config), torch.arange(40).view(2, 20), []
    copied: list[Tensor] = []
    to_host = activations._to_host

    def remembered(x: Tensor) -> tuple[torch.device, Tensor]:
        copied.append(x)
        return to_host(x)

    monkeypatch.setattr(activations, "_to_host", remembered)
    kinds: tuple[Checkpointing, ...] = ("full", "offload")
    for checkpointing in kinds:
        model.set_activation_checkpointing(checkpointing)
        model.zero_grad()
        torch.autograd.backward(model(ids).logits.square().sum())
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        number = BLOCKS if checkpointing == "offload" else 0
        assert [tuple(x.shape) for x in copied] == [(2, 20, 32)] * number
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full", "offload"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_the_bytes_that_a_block_keeps(
    checkpointing: Checkpointing, dtype: torch.dtype, kv_heads: int
) -> None:
    """By counting what is in memory between a forward and a backward pass, of 3 and 2 blocks."""
    num_tokens, kept, config = 64, [], NetworkConfig()
    for blocks in (3, 2):
        values = llada.FAMILY.config_json(
            d_model=64, n_heads=4, n_kv_heads=kv_heads, mlp_hidden_size=144, n_layers=blocks,
            vocab_size=32, eos_token_id=1, mask_token_id=2, pad_token_id=1,
        )  # fmt: skip
        config = NetworkConfig(values)
        model = build_model(config).to(dtype)
        model.set_activation_checkpointing(checkpointing)
        with Results(model) as results:
            loss = model(torch.arange(num_tokens)[None] % 32).logits.sum()
            kept.append(results.alive)
        assert loss.requires_grad
    expected = kept_bytes(config.architecture, dtype.itemsize)[checkpointing]
    # The host is the device here.
    expected += host_bytes(config.architecture, [checkpointing], dtype.itemsize)
    assert (kept[0] - kept[1]) / num_tokens == pytest.approx(expected, rel=0.02)


def llada_moe_sizes(blocks: int, has_shared: bool) -> dict[str, Any]:
    return llada_moe.FAMILY.config_json(
        hidden_size=64, num_hidden_layers=blocks, num_attention_heads=4, vocab_size=32,
        num_experts=8, num_experts_per_tok=3, expert_intermediate_size=48,
        shared_expert_intermediate_size=40 if has_shared else None, moe_layer_freq=[1] * blocks,
        eos_token_id=1, mask_token_id=2, pad_token_id=1,
    )  # fmt: skip


def llada2_sizes(blocks: int, has_shared: bool) -> dict[str, Any]:
    return llada2.FAMILY.config_json(
        hidden_size=64, num_hidden_layers=blocks, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=32, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=48,
        num_shared_experts=1 if has_shared else None, n_group=4, topk_group=2, use_bias=False,
        eos_token_id=1, mask_token_id=2, pad_token_id=1,
    )  # fmt: skip


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_shared", [False, True])
@pytest.mark.parametrize("sizes", [llada_moe_sizes, llada2_sizes])
def test_the_bytes_that_experts_keep(
    checkpointing: Checkpointing,
    dtype: torch.dtype,
    has_shared: bool,
    sizes: Callable[[int, bool], dict[str, Any]],
) -> None:
    num_tokens, kept, config = 64, [], NetworkConfig()
    for blocks in (3, 2):
        config = NetworkConfig(sizes(blocks, has_shared))
        model = build_model(config).to(dtype)
        model.set_activation_checkpointing(checkpointing)
        with Results(model) as results:
            routing = Routing()
            loss = model(torch.arange(num_tokens)[None] % 32, routing=routing).logits.sum()
            kept.append(results.alive)
        assert loss.requires_grad
    expected = kept_bytes(config.architecture, dtype.itemsize)[checkpointing]
    assert (kept[0] - kept[1]) / num_tokens == pytest.approx(expected, rel=0.02)


LLADA_8B = NetworkConfig().architecture


@pytest.mark.parametrize(
    ("budget", "compiled", "expected"),
    [
        (200e9, False, {"none": 32}),
        (90e9, False, {"none": 22, "selective": 10}),
        (40e9, False, {"selective": 20, "full": 12}),
        (40e9, True, {"none": 10, "full": 22}),
        (1e9, False, {"full": 32}),
    ],
)
def test_a_budget_decides_block_by_block(
    budget: float, compiled: bool, expected: dict[str, int]
) -> None:
    kinds = within_budget(LLADA_8B, 16_384, 2, budget, compiled)
    assert Counter(kinds) == expected
    assert len(kinds) == 32
    used = 16_384 * most_kept(LLADA_8B, kinds, 2)
    if kinds != ["full"] * 32:
        assert used <= budget
    if kinds != ["none"] * 32 and budget > 1e9:
        # One block more would be too much.
        steps = ["full", "none"] if compiled else ["full", "selective", "none"]
        least = next(kind for kind in steps if kind in kinds)
        more = list(kinds)
        more[more.index(least)] = steps[steps.index(least) + 1]
        assert 16_384 * most_kept(LLADA_8B, more, 2) > budget
