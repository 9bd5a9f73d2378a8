"""Kernels and optimizers of other packages under ZeRO-3: 2 gloo ranks."""

from pathlib import Path

import pytest

from llada_sft.demo.data import write_demo
from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_training import CONFIG, SMALL
from tests.distributed.training_workers import losses
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


def test_a_run_in_8_bits_goes_on_bit_for_bit_and_stays_near_to_that_in_32(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    write_demo(tmp_path / "demo")
    overrides = [
        *SMALL,
        f"model.path={tmp_path / 'demo/tokenizer'}",
        f"data.train={tmp_path / 'demo/data/train'}",
        f"data.validation={tmp_path / 'demo/data/heldout'}",
        "train.max_steps=6",
        "train.checkpoint_every_steps=3",
    ]
    of_kind = {}
    for kind, stops in (("adamw", []), ("adamw_8bit", [3])):
        run_on_ranks(
            "tests.distributed.training_workers:interrupted_runs", 2, 280,
            folder=str(tmp_path / kind), config_file=CONFIG,
            overrides=[*overrides, f"optim.kind={kind}"], stops=stops,
        )  # fmt: skip
        of_kind[kind] = losses(tmp_path / kind / "whole")
    assert losses(tmp_path / "adamw_8bit/stopped_3") == of_kind["adamw_8bit"]
    values = [[float(loss) for loss in of_kind[kind].values()] for kind in of_kind]
    assert len(values[0]) == 6
    assert values[0] != values[1]
    assert values[1] == pytest.approx(values[0], rel=1e-3)
