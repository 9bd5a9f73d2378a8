"""What a resume writes into a run's config.yaml."""

from pathlib import Path

import pytest

from llada_sft.cluster.resume.changing import replace_config
from llada_sft.config import load_config, load_run_config
from llada_sft.config.reader import read_values
from llada_sft.errors import ConfigError
from llada_sft.run_dir import RunDir


@pytest.mark.parametrize("overrides", [[], ["data.eos_after_cut=true"], ["optim.lr=0.1"]])
def test_keys_that_the_run_s_code_does_not_know_stay_out(
    tmp_path: Path, overrides: list[str]
) -> None:
    """A run of an older version has none of the keys that came later."""
    run = RunDir(tmp_path)
    run.config.write_text(
        "run: {name: a}\nmodel: {path: m}\ndata: {train: d, max_length: 64}\noptim: {lr: 0.2}\n"
    )
    config = load_config(run.config, overrides)
    replace_config(run, config)
    written = read_values(run.config)
    assert load_config(run.config) == config
    new = {"eos_after_cut"} if overrides == ["data.eos_after_cut=true"] else set()
    assert written["data"].keys() == {"train", "max_length"} | new
    assert written["optim"] == {"lr": 0.1 if overrides == ["optim.lr=0.1"] else 0.2}


def test_values_that_stay_are_written_as_they_were(tmp_path: Path) -> None:
    """An older version knows `true`, and not that it is called `full` now."""
    run = RunDir(tmp_path)
    text = "run: {name: a}\nmodel: {path: m, activation_checkpointing: true}\ndata: {train: d}\n"
    run.config.write_text(text)
    replace_config(run, load_config(run.config, ["run.seed=1"]))
    assert read_values(run.config)["model"]["activation_checkpointing"] is True
    replace_config(run, load_config(run.config, ["model.activation_checkpointing=selective"]))
    assert read_values(run.config)["model"]["activation_checkpointing"] == "selective"


def test_a_key_that_had_another_name_keeps_it(tmp_path: Path) -> None:
    """The run's own code knows the old one alone; typed changes have the new one."""
    run = RunDir(tmp_path)
    text = "run: {name: a}\nmodel: {path: m}\ndata: {train: d, eos_tail: 2}\n"
    run.config.write_text(text)
    config = load_run_config(run.config)
    assert config.data.end == 2
    replace_config(run, config)
    assert read_values(run.config)["data"] == {"train": "d", "eos_tail": 2}
    replace_config(run, load_run_config(run.config, ["data.end=batch_max"]))
    assert read_values(run.config)["data"] == {"train": "d", "eos_tail": "batch_max"}
    assert load_run_config(run.config).data.end == "batch_max"
    with pytest.raises(ConfigError) as caught:
        load_run_config(run.config, ["data.eos_tail=3"])
    assert str(caught.value) == (
        "override 'data.eos_tail=3': data.eos_tail: is called data.end now, with the same values;"
        " rename it"
    )


def test_a_section_that_may_be_null_stays_out_of_an_older_file(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    text = "run: {name: a}\nmodel: {path: m}\ndata: {train: d}\n"
    run.config.write_text(text)
    replace_config(run, load_config(run.config))
    assert "lora" not in read_values(run.config)
    # Where somebody asked for it, and where it was there and is null now.
    replace_config(run, load_config(run.config, ["lora.rank=4"]))
    assert read_values(run.config)["lora"]["rank"] == 4
    replace_config(run, load_config(run.config, ["lora=null"]))
    assert read_values(run.config)["lora"] is None


def test_a_section_that_came_later_stays_out_until_it_says_something(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.config.write_text("run: {name: a}\nmodel: {path: m}\ndata: {train: d}\n")
    replace_config(run, load_config(run.config))
    assert set(read_values(run.config)) == {"run", "model", "data"}
    replace_config(run, load_config(run.config, ["validation.draws=2"]))
    assert read_values(run.config)["validation"]["draws"] == 2
