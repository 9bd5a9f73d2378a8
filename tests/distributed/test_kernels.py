"""Kernels of other packages under ZeRO-3: 2 gloo ranks."""

from pathlib import Path

import pytest

from tests.distributed.ranks import run_on_ranks
from tests.triton_interpreter import CAN_INTERPRET, MISSING

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
GOLDEN = Path(__file__).parents[1] / "golden"
WORKERS = "tests.distributed.kernel_workers"


@pytest.mark.skipif(not CAN_INTERPRET, reason=MISSING)
@pytest.mark.parametrize(
    ("name", "leaves"), [("tiny_llada", True), ("tiny_llada", False), ("tiny_llada2_moe", True)]
)
def test_ligers_kernels_have_the_same_gradients_and_keep_no_gathered_weight(
    name: str, leaves: bool
) -> None:
    ranks = run_on_ranks(
        f"{WORKERS}:liger_under_zero", 2, 280, model_dir=str(GOLDEN / name), leaves=leaves
    )
    for found in ranks:
        assert found.keys() == {"none", "selective", "full"}
        for kind in found.values():
            assert kind["error"] < 1e-4
            # Of blocks that are not leaves, hooks have gathered nothing when they are looked at.
            assert kind["alive"] == [0] or not leaves
