"""What is exported is what was written, or nothing is; never another step than was asked for."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llada_sft.config import load_config
from llada_sft.config.reader import dump_config
from llada_sft.errors import CheckpointError, ConfigError
from llada_sft.model.configuration import read_config
from llada_sft.model.export import zero3_tensors
from llada_sft.model.index import read_index
from llada_sft.model.loading import load_model
from llada_sft.run_dir import RunDir
from llada_sft.training.export import export_run
from tests.unit.training.checkpoint_files import OPTIMIZER, damage, reseal, write_checkpoint

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests/golden/tiny_llada"
CASES = 40


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = RunDir(tmp_path_factory.mktemp("run"))
    overrides = [f"model.path={GOLDEN}", "model.size=null", "model.init=pretrained"]
    run.config.write_text(dump_config(load_config(ROOT / "config/demo.yaml", overrides)))
    network = read_config(GOLDEN).architecture.parameter_shapes()
    for step in (2, 4):
        write_checkpoint(run.checkpoints, step, network=network)
    return run.path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> RunDir:
    return RunDir(Path(shutil.copytree(made, tmp_path / "run")))


def refused(run: RunDir, out: Path, step: int | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        export_run(run.path, out, None, step)
    assert not out.exists()
    assert not out.with_name(f"{out.name}.partial").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_whole_one_is_exported(run: RunDir, tmp_path: Path) -> None:
    assert export_run(run.path, tmp_path / "a", None, None).name == "step_4"
    assert export_run(run.path, tmp_path / "b", "fp32", 2).name == "step_2"
    shapes = {name: slot.shape for name, slot in read_index(tmp_path / "b").items()}
    assert shapes == read_config(GOLDEN).architecture.parameter_shapes()


@pytest.mark.slow
def test_a_script_reads_one_line_from_the_command(run: RunDir, tmp_path: Path) -> None:
    """DeepSpeed warns on stdout when it is imported: in a process of its own, for here it was."""
    command = [sys.executable, "-m", "llada_sft", "export", str(run.path), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    newest = run.checkpoints / "step_4"
    assert done.stdout == f"exported {newest} to {tmp_path / 'out'}\n"


def test_the_mean_of_checkpoints_is_exported(run: RunDir, tmp_path: Path) -> None:
    for name, step in (("a", 2), ("b", 4)):
        export_run(run.path, tmp_path / name, "fp32", step)
    assert export_run(run.path, tmp_path / "mean", "fp32", None, average=2).name == "step_4"
    two, four, mean = (load_model(tmp_path / name).state_dict() for name in ("a", "b", "mean"))
    assert any(not torch.equal(two[name], four[name]) for name in two)
    for name in two:
        torch.testing.assert_close(mean[name], (two[name] + four[name]) / 2, rtol=1e-6, atol=1e-7)


def test_too_few_checkpoints_have_no_mean(run: RunDir, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"3 checkpoints up to step 4 are needed.*2, 4;"):
        export_run(run.path, tmp_path / "out", None, None, average=3)
    with pytest.raises(CheckpointError, match=r"2 checkpoints up to step 2 are needed.*are 2;"):
        export_run(run.path, tmp_path / "out", None, 2, average=2)


def test_what_ends_answers_is_never_to_be_written(run: RunDir, tmp_path: Path) -> None:
    """The export says so where transformers looks; what the source says there stays."""
    source = Path(shutil.copytree(GOLDEN, tmp_path / "source"))
    generation = json.dumps({"temperature": 0.5, "suppress_tokens": [9]})
    (source / "generation_config.json").write_text(generation)
    assert read_config(source).suppress_tokens == (9,)
    overrides = [f"model.path={source}", "data.end=rainbow", "data.rainbow_token_ids=[11, 9, 12]"]
    run.config.write_text(dump_config(load_config(run.config, overrides)))
    export_run(run.path, tmp_path / "out", None, None)
    written = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert written == {"temperature": 0.5, "suppress_tokens": [9, 11, 12]}
    assert load_model(tmp_path / "out").config.suppress_tokens == (9, 11, 12)
    assert "suppress_tokens" not in json.loads((tmp_path / "out/config.json").read_text())
    # Without such an end, the source's file is copied, and there need be none.
    overrides = [f"model.path={GOLDEN}", "data.end=1", "data.rainbow_token_ids=null"]
    run.config.write_text(dump_config(load_config(run.config, overrides)))
    export_run(run.path, tmp_path / "plain", None, None)
    assert not (tmp_path / "plain/generation_config.json").exists()


def test_adapters_are_exported_of_a_run_that_trains_them(run: RunDir, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trains no adapters \(lora: null\); remove it"):
        export_run(run.path, tmp_path / "out", None, None, adapter=True)


@pytest.mark.parametrize("seed", range(CASES))
def test_a_damaged_one_is_not(run: RunDir, tmp_path: Path, seed: int) -> None:
    damage(run.checkpoints / "step_4", random.Random(seed))
    line = refused(run, tmp_path / "out")
    assert line.startswith(f"{run.checkpoints}/step_4: ")
    assert line.endswith(": not exported; export another one with  --step 2")
    if seed == 0:
        assert export_run(run.path, tmp_path / "out", None, 2).name == "step_2"


def test_one_that_was_set_aside_is_named(run: RunDir, tmp_path: Path) -> None:
    aside = run.checkpoints / "step_4.damaged"
    (run.checkpoints / "step_4").rename(aside)
    for step in (None, 4):
        assert refused(run, tmp_path / "out", step) == (
            f"{aside}: was found damaged when the run resumed: not exported;"
            " export another one with  --step 2"
        )
    # Names that somebody gave.
    for name in ("step_4_old.damaged", "step_.damaged"):
        (run.checkpoints / name).mkdir()
        assert refused(run, tmp_path / "out").startswith(f"{aside}: was found damaged")
    (run.checkpoints / "step_2/latest").unlink()
    assert refused(run, tmp_path / "out").endswith("not exported; there is no other")


def test_steps_that_are_not_there(run: RunDir, tmp_path: Path) -> None:
    assert refused(run, tmp_path / "out", 3) == (
        f"{run.checkpoints}: no checkpoint of step 3; there are 2, 4"
    )
    shutil.rmtree(run.checkpoints)
    assert refused(run, tmp_path / "out") == (
        f"{run.checkpoints}: no complete checkpoint; train first"
    )


def test_one_of_another_network_is_not_exported(run: RunDir, tmp_path: Path) -> None:
    shutil.rmtree(run.checkpoints)
    write_checkpoint(run.checkpoints, 4)
    assert "is of another network" in refused(run, tmp_path / "out")


def test_code_is_not_run(run: RunDir, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> object:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    checkpoint = run.checkpoints / "step_4"
    network = read_config(GOLDEN).architecture.parameter_shapes()
    write_checkpoint(run.checkpoints, 4, network=network)
    state = torch.load(checkpoint / OPTIMIZER.format(0), weights_only=False)
    torch.save({**state, "more": Hostile()}, checkpoint / OPTIMIZER.format(0))
    reseal(checkpoint)
    assert "holds code (posix.system)" in refused(run, tmp_path / "out")
    # Nor where nobody has examined the files before.
    with pytest.raises(CheckpointError) as caught:
        zero3_tensors(checkpoint)
    assert str(caught.value) == (
        f"{checkpoint}: holds code (posix.system); nothing of it was run: export a checkpoint that"
        " this training wrote"
    )
    assert not (tmp_path / "ran").exists()
