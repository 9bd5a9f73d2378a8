"""Tensors and plain values are read; code is not run, whoever calls torch.load and how."""

import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum

from llada_sft.model.safe_load import load_data, weights_only, what_is_held

FORCE, FORBID = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


class Hostile:
    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.made}",)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """What DeepSpeed writes of an optimizer."""
    state = {"stage": ZeroStageEnum.weights, "scaler": LossScaler(1.0), "a": torch.arange(3)}
    torch.save(state, tmp_path / "one.pt")
    return tmp_path / "one.pt"


def test_the_types_of_an_optimizer_file_are_read(file: Path) -> None:
    state = load_data(file)
    assert state["stage"] == 3
    assert state["scaler"].loss_scale == 1.0
    assert torch.equal(state["a"], torch.arange(3))
    # Only while it is read.
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)


class CallOfGetattr:
    """Is pickled as Python 3.11.0 to 3.11.3 pickles a member of an enum."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return getattr, self.arguments


def test_a_member_of_an_enum_as_an_early_python_3_11_writes_it(tmp_path: Path) -> None:
    torch.save({"stage": CallOfGetattr(ZeroStageEnum, "weights")}, tmp_path / "one.pt")
    assert load_data(tmp_path / "one.pt") == {"stage": ZeroStageEnum.weights}


@pytest.mark.parametrize(
    "arguments",
    [
        (ZeroStageEnum, "mro"),
        (ZeroStageEnum, "__class__"),
        (ZeroStageEnum, "nothing"),
        (ZeroStageEnum, 3),
        (ZeroStageEnum, "mro", None),
        (LossScaler, "__init__"),
        ({}, "get"),
        (torch.arange(2), "weights"),
        ("weights", "join"),
    ],
    ids=repr,
)
def test_getattr_gives_nothing_else(tmp_path: Path, arguments: tuple[object, ...]) -> None:
    torch.save({"a": CallOfGetattr(*arguments)}, tmp_path / "one.pt")
    with pytest.raises(pickle.UnpicklingError) as caught:
        load_data(tmp_path / "one.pt")
    assert what_is_held(caught.value) == "code (getattr)"


def test_contexts_within_each_other(file: Path) -> None:
    with weights_only():
        load_data(file)
        with weights_only():
            load_data(file)
        # As DeepSpeed calls it.
        assert torch.load(file, weights_only=False)["stage"] == 3


def test_readers_in_several_threads(file: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        states = list(pool.map(lambda _: load_data(file), range(200)))
    assert len(states) == 200
    assert FORCE not in os.environ
    assert LossScaler not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize(
    "environment", [{}, {FORCE: "0"}, {FORBID: "1"}, {FORCE: "0", FORBID: "1"}], ids=str
)
def test_code_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    torch.save({"a": Hostile(tmp_path / "ran")}, tmp_path / "one.pt")
    for load in (
        lambda: load_data(tmp_path / "one.pt"),
        lambda: torch.load(tmp_path / "one.pt", weights_only=False),
    ):
        with pytest.raises(pickle.UnpicklingError) as caught, weights_only():
            load()
        assert what_is_held(caught.value) == "code (posix.system)"
    assert not (tmp_path / "ran").exists()
    assert dict(os.environ) == before


def test_what_names_no_function() -> None:
    error = pickle.UnpicklingError("Unsupported operand 149")
    assert what_is_held(error) == "more than tensors and plain values"
