"""Settings of evaluations: the shipped files, what differs by task, and each mistake in a line."""

from pathlib import Path

import pytest

from llada_sft.errors import ConfigError
from llada_sft.evaluation.settings import load_eval_config

ROOT = Path(__file__).parents[3]
SHIPPED = sorted((ROOT / "config/eval").glob("*.yaml"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text(
        "num_fewshot: 5\n"
        "generation: {gen_length: 64, block_length: 32}\n"
        "tasks:\n"
        "  a: {num_fewshot: 0, generation: {block_length: 8, sampler: threshold}}\n"
        "  b: {likelihood: {num_draws: 1}}\n"
    )
    return path


def test_what_is_given_for_a_task_replaces_the_rest(file: Path) -> None:
    config = load_eval_config(file)
    first, second, third = map(config.for_task, ("a", "b", "c"))
    assert (first.num_fewshot, second.num_fewshot, third.num_fewshot) == (0, 5, 5)
    assert first.generation.sampler_settings().block_length == 8
    assert first.generation.sampler_settings().sampler == "threshold"
    assert first.generation.gen_length == 64
    assert second.generation.block_length == 32
    assert (first.likelihood.num_draws, second.likelihood.num_draws) == (128, 1)
    assert list(config.tasks) == ["a", "b"]


def test_overrides_come_last_and_need_no_file(file: Path) -> None:
    assert load_eval_config(file, ["tasks.b.num_fewshot=1"]).for_task("b").num_fewshot == 1
    assert load_eval_config(None, ["limit=3"]).limit == 3
    assert load_eval_config(None).likelihood.num_draws == 128


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("genration.steps=3", "genration: unknown key; did you mean 'generation'?"),
        ("generation.gen_lenth=3", "generation.gen_lenth: unknown key; did you mean 'gen_length'?"),
        ("tasks.a.likelihood.draws=3", "unknown key; did you mean 'num_draws'?"),
        ("likelihood.cfg_scale=1e30", "likelihood.cfg_scale: must be at most 1000, got 1e+30"),
        ("generation.cfg_scale=1e30", "generation.cfg_scale: must be at most 1000, got 1e+30"),
        ("generation.temperature=11", "generation.temperature: must be at most 10, got 11"),
        ("dtype=fp16", "dtype: must be 'bf16', 'fp32' or 'auto', got 'fp16'"),
        ("generation.sampler=fast", "generation.sampler: must be 'official', 'threshold'"),
        ("slurm.partition=a b", "slurm.partition: must be a match of"),
        ("tasks={../b: {}}", "tasks.../b: must be a match of"),
    ],
)
def test_a_mistake_is_one_line(file: Path, override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_eval_config(file, [override])
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_settings_that_do_not_fit_together_name_the_task(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_eval_config(file, ["tasks.a.generation.block_length=24", "generation.steps=3"])
    steps = "steps must be a multiple of the number of blocks, got 3 and 2"
    assert str(caught.value).splitlines() == [
        f"{file}: generation: {steps}",
        f"{file}: tasks.a.generation: gen_length must be a multiple of block_length, got 64 and 24",
        f"{file}: tasks.b.generation: {steps}",
    ]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_file_loads_and_says_where_its_settings_are_from(path: Path) -> None:
    config = load_eval_config(path)
    assert config.tasks
    assert config.chat is not None
    assert "arXiv" in path.read_text() or "EVAL.md" in path.read_text()


def test_files_are_shipped() -> None:
    assert len(SHIPPED) >= 3


def test_blocks_are_those_of_the_sampler() -> None:
    def length(*overrides: str) -> int:
        return load_eval_config(None, overrides).generation.sampler_settings().block_length

    assert length() == 256
    assert length("generation.sampler=llada2") == length("generation.sampler=llada21") == 32
    assert length("generation.sampler=llada2", "generation.block_length=8") == 8
