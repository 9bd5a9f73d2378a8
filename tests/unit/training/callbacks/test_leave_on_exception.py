"""Which exceptions a rank leaves with, before Lightning cleans up."""

from types import SimpleNamespace
from typing import Any

import pytest

from llada_sft.errors import DataError
from llada_sft.training.callbacks.leave_on_exception import LeaveOnException


@pytest.mark.parametrize(
    ("exception", "leaves"),
    [(RuntimeError("x"), True), (DataError("x"), False), (KeyboardInterrupt(), False)],
)
def test_a_rank_leaves_with_what_it_did_not_expect(exception: BaseException, leaves: bool) -> None:
    left: list[Any] = []
    callback = LeaveOnException(lambda *given: left.append(given))
    trainer: Any = SimpleNamespace(global_step=3)
    callback.on_exception(trainer, SimpleNamespace(), exception)  # type: ignore[arg-type]
    assert left == ([(exception, 3)] if leaves else [])
