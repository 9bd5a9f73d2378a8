"""Each shipped config trains: three steps of a tiny member of its family on two ranks."""

from pathlib import Path

import pytest

from tests.distributed.members import write_member
from tests.distributed.ranks import run_on_ranks
from tests.distributed.training_workers import losses

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
# demo.yaml is tested by the demo itself.
FILES = sorted(set(Path("config").glob("*.yaml")) - {Path("config/demo.yaml")})
MEMBER = {"illada": "tied", "llada-moe": "moe", "llada2-mini": "llada2"}
# What is tiny, and what a machine without GPUs has. Everything else is what is shipped.
TINY = [
    "data.validation=null",
    "data.prefetch_steps=0",
    "train.max_steps=3",
    "train.precision=fp32",
    "train.accelerator=cpu",
    "optim.warmup_steps=1",
    "log.every_n_steps=1",
    "log.tensorboard=false",
    "data.max_length=64",
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_trains(file: Path, demo: Path, tmp_path: Path) -> None:
    member = MEMBER.get(file.stem, "dense")
    model = write_member(member, demo / "tokenizer", tmp_path / "model")
    overrides = [*TINY, f"model.path={model}", f"data.train={demo / 'data/train'}"]
    if "batching: packed" in file.read_text():
        overrides.append("data.max_tokens=128")
    if "format: text" in file.read_text():
        # The answers alone are short documents.
        overrides.append("data.fields={text: response}")
    run = tmp_path / "run"
    steps = run_on_ranks(
        "tests.distributed.training_workers:train_each", 2, 240,
        config_file=str(file), runs=[(str(run), overrides)],
    )  # fmt: skip
    assert steps == [[3], [3]]
    assert all(0 < float(loss) < 100 for loss in losses(run).values())
    assert (run / "checkpoints").is_dir()
