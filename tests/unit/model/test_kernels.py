"""Which kernels are chosen: by the config, the packages and the device."""

from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

from llada_sft.config.schema import Config
from llada_sft.errors import ConfigError
from llada_sft.model.kernels import choice
from llada_sft.model.kernels.choice import Kernels, choose_kernels, missing_kernels
from llada_sft.model.kernels.use import use_kernels
from llada_sft.model.layers import attention

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(attention, "has_varlen_kernel", lambda device, dtype: True)
    installed(monkeypatch)


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Let packages be there in these versions, and no others."""
    there = {name.replace("_", "-"): version for name, version in versions.items()}
    modules = set(versions) | {"triton"}
    monkeypatch.setattr(choice, "find_spec", lambda name: name in modules or None)
    monkeypatch.setattr(metadata, "version", there.__getitem__)


def config(precision: str = "bf16", batching: str = "packed", **model: str) -> Config:
    data = {"train": "d", "batching": batching, "max_tokens": 4096, "end": 1}
    if batching == "padded":
        del data["max_tokens"]
    return Config.model_validate(
        {
            "run": {"name": "a"},
            "model": {"path": "m", **model},
            "data": data,
            "train": {"precision": precision},
        }
    )


def chosen(
    given: Config, device: torch.device = CUDA, compiled: bool = False, head_dim: int = 128
) -> Kernels:
    return choose_kernels(given, head_dim, device, compiled)


ALL_LIGER = dict.fromkeys(("norm", "swiglu", "rope", "loss"), "liger")


@pytest.mark.parametrize(
    ("version", "device", "compiled", "expected"),
    [
        ("0.8.5", CUDA, False, ALL_LIGER),
        ("0.8.12", CUDA, True, {"loss": "liger"}),
        ("0.8.5", CPU, False, {}),
        (None, CUDA, False, {}),
        ("0.8.4", CUDA, False, {}),
        ("0.9.0", CUDA, False, {}),
        ("0.9.0.dev20260101", CUDA, False, {}),
    ],
)
def test_auto_takes_ligers_kernels_where_they_are(
    monkeypatch: pytest.MonkeyPatch,
    version: str | None,
    device: torch.device,
    compiled: bool,
    expected: dict[str, str],
) -> None:
    if version is not None:
        installed(monkeypatch, liger_kernel=version)
    assert chosen(config(), device, compiled) == Kernels(**expected)


def test_what_is_asked_for_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, liger_kernel="0.8.5")
    given = config(norm_kernel="torch", rope_kernel="liger", loss_kernel="torch")
    assert chosen(given) == Kernels(swiglu="liger", rope="liger")
    # In Triton's interpreter on the CPU, too, but never by itself.
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert chosen(given, CPU) == Kernels(rope="liger")


@pytest.mark.parametrize(
    ("given", "device", "head_dim", "version", "ampere", "expected"),
    [
        ({}, CUDA, 128, "2.8.3", True, "flash_attn"),
        ({"attention_kernel": "flash_attn"}, CUDA, 128, "2.7.1", True, "flash_attn"),
        ({"attention_kernel": "torch"}, CUDA, 128, "2.8.3", True, "torch"),
        ({"precision": "fp32"}, CUDA, 128, "2.8.3", True, "torch"),
        ({"batching": "padded"}, CUDA, 128, "2.8.3", True, "torch"),
        ({}, CUDA, 128, "2.6.3", True, "torch"),
        ({}, CUDA, 264, "2.8.3", True, "torch"),
        ({}, CUDA, 128, "2.8.3", False, "torch"),
        ({}, CPU, 128, "2.8.3", True, "torch"),
    ],
)
def test_where_flash_attention_is_used(
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, str],
    device: torch.device,
    head_dim: int,
    version: str,
    ampere: bool,
    expected: str,
) -> None:
    installed(monkeypatch, flash_attn=version)
    monkeypatch.setattr(attention, "has_varlen_kernel", lambda device, dtype: ampere)
    kernels = chosen(config(**given), device, head_dim=head_dim)
    assert kernels.attention == expected
    # The network then plans with it.
    network = SimpleNamespace()
    use_kernels(network, kernels)  # type: ignore[arg-type]
    assert network.flash_attention is (expected == "flash_attn")


def problems(given: Config, device: torch.device = CUDA, head_dim: int = 128) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        chosen(given, device, head_dim=head_dim)
    return str(caught.value).splitlines()


def test_what_is_not_installed_is_a_line_for_each_key(monkeypatch: pytest.MonkeyPatch) -> None:
    given = config(norm_kernel="liger", attention_kernel="flash_attn")
    lines = [
        "model.attention_kernel: flash_attn: the package flash-attn is not installed:"
        " run  pip install 'llada-sft[flash]'  or set it to torch",
        "model.norm_kernel: liger: the package liger-kernel is not installed:"
        " run  pip install 'llada-sft[liger]'  or set it to torch",
    ]
    assert missing_kernels(given) == problems(given) == lines
    installed(monkeypatch, liger_kernel="0.7.0", flash_attn="2.8.3")
    assert missing_kernels(given) == [
        "model.norm_kernel: liger: liger-kernel is 0.7.0, and one from 0.8.5 to before 0.9 is"
        " needed: run  pip install 'llada-sft[liger]'  or set it to torch"
    ]
    assert missing_kernels(config()) == []
    eight_bits = config()
    eight_bits = eight_bits.model_copy(
        update={"optim": eight_bits.optim.model_copy(update={"kind": "adamw_8bit"})}
    )
    assert problems(eight_bits) == [
        "optim.kind: adamw_8bit: the package bitsandbytes is not installed:"
        " run  pip install 'llada-sft[adamw8bit]'  or set it to adamw"
    ]


def test_what_needs_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, liger_kernel="0.8.5", flash_attn="2.8.3")
    assert problems(config(rope_kernel="liger"), CPU) == [
        "model.rope_kernel: liger needs CUDA, and this rank computes on the CPU; set it to auto or"
        " torch"
    ]
    flash = config(attention_kernel="flash_attn")
    assert problems(flash, CPU) == [
        "model.attention_kernel: flash_attn needs CUDA, and this rank computes on the CPU; set it"
        " to auto or torch"
    ]
    assert problems(flash, head_dim=264) == [
        "model.attention_kernel: flash_attn takes heads of at most 256 features, and these have"
        " 264; set it to torch"
    ]
    monkeypatch.setattr(attention, "has_varlen_kernel", lambda device, dtype: False)
    assert problems(flash) == [
        "model.attention_kernel: flash_attn needs a GPU of NVIDIA's Ampere or newer; set it to"
        " torch"
    ]


@pytest.mark.parametrize(
    ("given", "needed"),
    [
        ({"precision": "fp32"}, "train.precision: bf16, got fp32"),
        ({"batching": "padded"}, "data.batching: packed, got padded"),
    ],
)
def test_flash_attention_is_for_packed_rows_in_bf16(given: dict[str, str], needed: str) -> None:
    line = f"model.attention_kernel: flash_attn needs {needed}; set that, or attention_kernel: auto"
    with pytest.raises(ValueError, match=line):
        config(attention_kernel="flash_attn", **given)


def test_the_line_that_is_printed() -> None:
    kernels = Kernels(attention="flash_attn", loss="liger")
    assert kernels.line(compiled=False) == (
        "kernels: attention flash_attn, norm torch, swiglu torch, rope torch, loss liger"
    )
    assert kernels.line(compiled=True) == (
        "kernels: attention flash_attn, norm compiled, swiglu compiled, rope compiled, loss liger"
    )
