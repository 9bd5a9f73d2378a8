"""Where TensorBoard's curves are."""

from pathlib import Path

import pytest

from llada_sft.training.log.tensorboard import TensorBoardLog


@pytest.mark.parametrize("name", ["$HOME", "a ${HOME} b", "~", "plain"])
def test_the_folder_is_named_as_it_is(tmp_path: Path, name: str) -> None:
    log = TensorBoardLog(tmp_path / name, name="tensorboard", version="")
    log.log_metrics({"loss": 1.0}, 1)
    log.save()
    (written,) = tmp_path.rglob("events.*")
    assert written.parent == tmp_path / name / "tensorboard"
