"""Sequences that share one row: each is computed as if it were alone."""

import sys
from collections.abc import Sequence
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llada_sft.model import Network, NetworkConfig, build_model
from llada_sft.model.layers import attention
from llada_sft.model.layers.attention import Sequences
from llada_sft.model.layers.kept_bytes import Checkpointing

LENGTHS = (7, 1, 12)
CPU = torch.device("cpu")


def ids_of(lengths: Sequence[int], seed: int = 0) -> Tensor:
    return torch.randint(0, 99, (1, sum(lengths)), generator=torch.Generator().manual_seed(seed))


def flash_on_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float | None,
    causal: bool,
) -> Tensor:
    """What flash-attn's function of variable lengths computes; it has fewer heads of keys."""
    assert (dropout_p, softmax_scale, causal) == (0.0, None, False)
    assert isinstance(max_seqlen_q, int)
    groups, rest = divmod(q.shape[1], k.shape[1])
    assert rest == 0 and k.shape == v.shape and (len(q), q.shape[2]) == (len(k), k.shape[2])
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    return varlen_on_cpu(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)


def varlen_on_cpu(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int
) -> Tensor:
    """What torch's kernel of that name computes, [L, H, D], for tensors that it does not take."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert max_q == max_k == int(cu_q.diff().max())
    assert q.shape == k.shape == v.shape
    spans = zip(cu_q[:-1].tolist(), cu_q[1:].tolist(), strict=True)
    parts = [
        F.scaled_dot_product_attention(*(x[begin:end].transpose(0, 1) for x in (q, k, v)))
        for begin, end in spans
    ]
    return torch.cat(parts, dim=1).transpose(0, 1)


@pytest.fixture(params=["one by one", "varlen", "flash_attn"], autouse=True)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "one by one":
        return
    monkeypatch.setattr(attention, "has_varlen_kernel", lambda *_: True)
    monkeypatch.setattr(attention, "varlen_attn", varlen_on_cpu)
    if request.param == "flash_attn":
        package = ModuleType("flash_attn")
        package.flash_attn_varlen_func = flash_on_cpu  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "flash_attn", package)
        # It has the function of the package that was there when it was imported.
        monkeypatch.delitem(sys.modules, "llada_sft.model.kernels.flash", raising=False)
        monkeypatch.setattr(attention, "varlen_attn", None)
        monkeypatch.setattr(Network, "flash_attention", True)


def gradients(model: Network, logits: Tensor) -> Tensor:
    model.zero_grad()
    torch.autograd.backward(logits.logsumexp(-1).square().sum())
    return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_a_row_of_sequences_equals_each_alone(
    small_config: NetworkConfig, kv_heads: int, checkpointing: Checkpointing
) -> None:
    model = build_model(small_config.changed(n_kv_heads=kv_heads))
    model.set_activation_checkpointing(checkpointing)
    ids = ids_of(LENGTHS)
    together = model(ids, sequences=Sequences(LENGTHS)).logits[0]
    alone = torch.cat([model(part).logits[0] for part in ids.split(LENGTHS, dim=1)])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(gradients(model, together), gradients(model, alone))


def test_neighbours_do_not_matter(small_config: NetworkConfig) -> None:
    model = build_model(small_config)
    ids = ids_of(LENGTHS)
    changed = ids.clone()
    changed[:, :7], changed[:, 8:] = ids_of([7], 1), ids_of([12], 2)
    logits = [model(one, sequences=Sequences(LENGTHS)).logits[0, 7] for one in (ids, changed)]
    assert torch.equal(*logits)
    in_one_sequence = [model(one).logits[0, 7] for one in (ids, changed)]
    assert not torch.allclose(*in_one_sequence)


def test_chosen_positions_count_through_the_row(small_config: NetworkConfig) -> None:
    model, positions = build_model(small_config), torch.tensor([0, 7, 19])
    ids = ids_of(LENGTHS)
    chosen = model(ids, positions=positions, sequences=Sequences(LENGTHS)).logits
    full = model(ids, sequences=Sequences(LENGTHS)).logits[0]
    torch.testing.assert_close(chosen, full[positions])


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5))
@settings(max_examples=20, deadline=None)
def test_places_and_plan(lengths: list[int]) -> None:
    sequences = Sequences(lengths)
    assert sequences.places.tolist() == [place for length in lengths for place in range(length)]
    how = attention.plan_attention(None, sequences, CPU, torch.float32)
    assert isinstance(how, tuple)
    if not isinstance(how[0], Tensor):
        assert how == tuple(lengths)
    else:
        assert how[0].tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
        assert how[1] == max(lengths)


@pytest.mark.parametrize(
    ("shape", "masked", "message"),
    [
        ((1, 19), False, r"sequences: input_ids must be \[1, 20\], without a mask, got \["),
        ((2, 10), False, r"got \[2, 10\]$"),
        ((1, 20), True, "without a mask"),
    ],
)
def test_what_does_not_fit_is_refused(
    small_config: NetworkConfig, shape: tuple[int, int], masked: bool, message: str
) -> None:
    ids = torch.zeros(shape, dtype=torch.int64)
    mask = torch.ones_like(ids) if masked else None
    with pytest.raises(ValueError, match=message):
        build_model(small_config)(ids, mask, sequences=Sequences(LENGTHS))
