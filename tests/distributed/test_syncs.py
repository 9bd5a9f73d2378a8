"""What reads a value of the device within an optimizer step: nothing of ours, and DeepSpeed's list.

Each such call waits on a GPU for all that was given to it before. The calls are the same on CPU.
"""

from pathlib import Path

import pytest

from llada_sft.demo.data import write_demo
from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_training import CONFIG, SMALL

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
WORKERS = "tests.distributed.sync_workers"
# Reads of one optimizer step at each stage, however many micro-batches it has.
_STAGES_1_AND_2 = {
    "deepspeed/runtime/utils.py:is_invalid_grad_norm": 3,
    "deepspeed/runtime/zero/stage_1_and_2.py:has_overflow": 1,
}
LISTED = {
    1: _STAGES_1_AND_2,
    2: _STAGES_1_AND_2,
    3: {"deepspeed/runtime/utils.py:is_invalid_grad_norm": 1},
}
TRACING = {
    "deepspeed/runtime/zero/utils.py:<listcomp>",
    "deepspeed/runtime/zero/utils.py:assert_lst_len_same_as_other_ranks",
    "deepspeed/runtime/zero/utils.py:get_lst_from_rank0",
}
LOGGING = {
    "llada_sft/training/log/signals.py:close",
    "llada_sft/training/strategy.py:gradient_norm",
}


def test_every_way_of_reading_is_counted() -> None:
    assert run_on_ranks(f"{WORKERS}:reads_of_planted", 1, 60) == [
        {
            "tests/distributed/sync_workers.py:planted_reads": 12,
            "tests/distributed/sync_workers.py:planted_hook": 1,
        }
    ]


@pytest.mark.parametrize(("stage", "listed"), LISTED.items())
def test_a_step_reads_what_is_listed_and_nothing_of_ours(
    stage: int, listed: dict[str, int], tmp_path: Path
) -> None:
    write_demo(tmp_path)
    overrides = [
        *SMALL,
        f"model.path={tmp_path / 'tokenizer'}",
        f"data.train={tmp_path / 'data/train'}",
        "data.validation=null",
        f"deepspeed.stage={stage}",
        "deepspeed.stage3_param_persistence_threshold=0",
        "model.activation_checkpointing=full",
        "train.max_steps=4",
        "train.precision=bf16",
        # A step that is logged reads its numbers.
        "log.every_n_steps=4",
    ]
    for steps in run_on_ranks(
        f"{WORKERS}:reads_of_steps", 2, 200,
        folder=str(tmp_path / "run"), config_file=CONFIG, overrides=overrides,
    ):  # fmt: skip
        first, second, third, logged = steps
        assert second == third == listed
        # In the first step ZeRO-3 compares the ranks' orders of modules, once.
        assert first.keys() - listed.keys() <= TRACING
        assert logged.keys() - listed.keys() == LOGGING
