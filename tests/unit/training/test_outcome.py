"""How a training ended, as its callers are told."""

import pytest

from llada_sft.errors import DataError
from llada_sft.training.trainer import outcome


def test_a_training_that_made_no_step_has_not_finished() -> None:
    assert outcome(stopped=False, step=1) == "finished"
    # Told to stop before the first step.
    assert outcome(stopped=True, step=0) == "stopped"
    with pytest.raises(DataError, match=r"^data\.train: the training ended without a step"):
        outcome(stopped=False, step=0)
