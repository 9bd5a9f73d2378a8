"""Which kernels are chosen: by the config, the packages and the device."""

from importlib import metadata

import pytest
import torch

from llada_sft.config.model_section import ModelConfig
from llada_sft.errors import ConfigError
from llada_sft.model.kernels import choice
from llada_sft.model.kernels.choice import Kernels, choose_kernels, missing_kernels

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
INSTALL = "run  pip install 'llada-sft[liger]'  or set it to torch"


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def installed(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """Let liger-kernel be there in a version, or not at all."""
    monkeypatch.setattr(choice, "find_spec", lambda name: version)
    monkeypatch.setattr(metadata, "version", lambda name: version)


@pytest.mark.parametrize(
    ("version", "device", "compiled", "expected"),
    [
        ("0.8.5", CUDA, False, Kernels("liger", "liger", "liger", "liger")),
        ("0.8.12", CUDA, True, Kernels(loss="liger")),
        ("0.8.5", CPU, False, Kernels()),
        (None, CUDA, False, Kernels()),
        ("0.8.4", CUDA, False, Kernels()),
        ("0.9.0", CUDA, False, Kernels()),
        ("0.9.0.dev20260101", CUDA, False, Kernels()),
    ],
)
def test_auto_takes_what_is_there(
    monkeypatch: pytest.MonkeyPatch,
    version: str | None,
    device: torch.device,
    compiled: bool,
    expected: Kernels,
) -> None:
    installed(monkeypatch, version)
    assert choose_kernels(ModelConfig(path="m"), device, compiled) == expected


def test_what_is_asked_for_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "0.8.5")
    config = ModelConfig(path="m", norm_kernel="torch", rope_kernel="liger", loss_kernel="torch")
    assert choose_kernels(config, CUDA, False) == Kernels(swiglu="liger", rope="liger")
    # In Triton's interpreter, on the CPU, but never by itself.
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose_kernels(config, CPU, False) == Kernels(rope="liger")


def test_what_is_not_installed_is_a_line_for_each_key(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, None)
    config = ModelConfig(path="m", norm_kernel="liger", loss_kernel="liger")
    lines = [
        f"model.{part}_kernel: liger: the package liger-kernel is not installed: {INSTALL}"
        for part in ("norm", "loss")
    ]
    assert missing_kernels(config) == lines
    with pytest.raises(ConfigError) as caught:
        choose_kernels(config, CUDA, False)
    assert str(caught.value).splitlines() == lines
    installed(monkeypatch, "0.7.0")
    assert missing_kernels(ModelConfig(path="m", swiglu_kernel="liger")) == [
        "model.swiglu_kernel: liger: liger-kernel is 0.7.0, and 0.8.5 or a later 0.8 is needed:"
        f" {INSTALL}"
    ]
    assert missing_kernels(ModelConfig(path="m")) == []


def test_what_needs_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "0.8.5")
    with pytest.raises(ConfigError) as caught:
        choose_kernels(ModelConfig(path="m", rope_kernel="liger"), CPU, False)
    assert str(caught.value) == (
        "model.rope_kernel: liger needs CUDA, and this rank computes on the CPU; set it to auto or"
        " torch"
    )


def test_the_line_that_is_printed() -> None:
    kernels = Kernels(norm="torch", swiglu="torch", rope="torch", loss="liger")
    assert (
        kernels.line(compiled=False) == "kernels: norm torch, swiglu torch, rope torch, loss liger"
    )
    assert kernels.line(compiled=True) == (
        "kernels: norm compiled, swiglu compiled, rope compiled, loss liger"
    )
