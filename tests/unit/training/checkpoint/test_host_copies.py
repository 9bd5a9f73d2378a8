"""A copy of a state in host memory: torch writes the same file of it, and it shares nothing."""

import io
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import nn

from llada_sft.training.checkpoint.host_copies import HostCopies


class Pair(NamedTuple):
    first: Any
    second: Any


def make_state() -> dict[str, Any]:
    """What a checkpoint may hold: views, shared storages, parameters, plain values, attributes."""
    flat = torch.arange(12.0)
    named = torch.ones(3)
    named.ds_id = [1, 2]  # type: ignore[attr-defined]
    shared = {"lr": 0.1, "betas": (0.9, 0.95)}
    return {
        "flat": flat,
        "view": flat[3:9].view(2, 3).t(),
        "again": flat,
        "empty": torch.empty(0, dtype=torch.bfloat16),
        "bf16": torch.ones(2, 3, dtype=torch.bfloat16),
        "step": torch.tensor(7),
        "parameter": nn.Parameter(torch.zeros(4)),
        "frozen": nn.Parameter(torch.zeros(4), requires_grad=False),
        "leaf": torch.zeros(2, requires_grad=True),
        "named": named,
        "groups": [shared, shared, (1, "x", None)],
        "pair": Pair(torch.zeros(1), OrderedDict(a=torch.ones(1))),
    }


def content(state: object) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def spoil(state: dict[str, Any]) -> None:
    """Change everything, as a training does with its next steps."""
    with torch.no_grad():
        for tensor in (state["flat"], state["bf16"], state["step"], state["parameter"]):
            tensor.add_(1)
        state["pair"].second["a"].zero_()
    state["named"].ds_id.append(3)
    state["groups"][0]["lr"] = 0.2
    state["groups"].append("more")


def test_torch_writes_the_same_file_whatever_changes_later() -> None:
    state = make_state()
    expected = content(state)
    copied = HostCopies().copied(state)
    assert content(copied) == expected
    spoil(state)
    assert content(state) != expected
    assert content(copied) == expected


def test_memory_is_reused_and_only_what_was_needed_is_kept() -> None:
    copies, state = HostCopies(), make_state()
    assert copies.num_bytes == 0
    first = copies.copied(state)
    place = first["flat"].data_ptr()
    # Not before it is released.
    assert copies.copied(state)["flat"].data_ptr() != place
    copies.release()
    assert copies.num_bytes == 2 * sum(
        state[name].untyped_storage().nbytes()
        for name in ("flat", "bf16", "step", "parameter", "frozen", "leaf", "named")
    ) + 2 * (4 + 4)
    kept = {copies.copied(state)["flat"].data_ptr() for _ in range(2)}
    assert place in kept
    copies.release()
    copies.copied({"other": torch.zeros(100)})
    copies.release()
    assert copies.num_bytes == 400


def test_the_same_bits_come_out_of_memory_that_was_used_before() -> None:
    copies, state = HostCopies(), make_state()
    copies.copied(state)
    copies.release()
    spoil(state)
    expected = content(state)
    assert content(copies.copied(state)) == expected
