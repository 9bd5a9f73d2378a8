"""The demo's task, learned by the block objective and answered in blocks: LLaDA and LLaDA2."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from llada_sft.config import load_config
from llada_sft.config.reader import dump_config, load_run_config
from llada_sft.demo.evaluation import exact_match
from llada_sft.generation import SamplerSettings
from llada_sft.model import load_model
from llada_sft.run_dir import RunDir
from llada_sft.training.export import export_run
from tests.distributed.members import write_member
from tests.distributed.ranks import started_ranks
from tests.distributed.test_training import CONFIG, WORKERS

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(600)]
BLOCK = 8
# Of a network that learns the task with the demo's rows and steps.
LLADA2 = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "head_dim": 24,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
}


def overrides(demo: Path, kind: str, folder: Path) -> list[str]:
    given = [
        "objective.kind=block",
        f"objective.block_length={BLOCK}",
        f"model.path={demo / 'tokenizer'}",
        f"data.train={demo / 'data/train'}",
        f"data.validation={demo / 'data/heldout'}",
        "data.prefetch_steps=0",
        "train.micro_batch_size=64",
        "train.validate_every_steps=1000",
        "log.tensorboard=false",
    ]
    if kind == "dense":
        return given
    model = write_member("llada2", demo / "tokenizer", folder / "model", **LLADA2)
    return [*given, f"model.path={model}", "model.init=pretrained", "model.size=null"]


@pytest.fixture(scope="module")
def trained(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Train both side by side, with one rank each; return their runs."""
    folder = tmp_path_factory.mktemp("blocks")
    runs = {kind: folder / kind for kind in ("dense", "llada2")}
    given = {kind: overrides(demo, kind, folder) for kind in runs}
    with ExitStack() as stack:
        started = []
        for kind, run in runs.items():
            each = [(str(run), given[kind])]
            training = started_ranks(f"{WORKERS}:train_each", 1, config_file=CONFIG, runs=each)
            started.append(stack.enter_context(training))
        for ranks in started:
            assert ranks.wait(560) is None, ranks.logs()
    for kind, run in runs.items():
        RunDir(run).config.write_text(dump_config(load_config(CONFIG, given[kind])))
    return runs


@pytest.mark.parametrize("kind", ["dense", "llada2"])
def test_the_demo_is_learned_and_answered_in_blocks(
    trained: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    run = trained[kind]
    config = load_run_config(RunDir(run).config)
    export_run(run, tmp_path / "out", None, None)
    model = load_model(tmp_path / "out")
    assert model.architecture.decodes_in_blocks
    found = [
        exact_match(
            model,
            config,
            SamplerSettings(
                sampler="llada2", gen_length=BLOCK, block_length=BLOCK, cache_blocks=cached
            ),
        )
        for cached in (True, False)
    ]
    print(f"{kind}: exact match {found[0][0]:.1%} with the cache, {found[1][0]:.1%} without")
    assert found[0] == found[1]
    assert found[0][0] >= 0.9
