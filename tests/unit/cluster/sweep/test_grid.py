"""The runs of a sweep: their values, their names, and all mistakes at once."""

from pathlib import Path

import pytest

from llada_sft.cluster.sweep.grid import MAX_RUNS, runs_of_sweep, split_values
from llada_sft.config import load_config
from llada_sft.errors import ConfigError


def names(*sweep: str, overrides: tuple[str, ...] = ()) -> list[str]:
    return [run.name for run in runs_of_sweep("a.yaml", overrides, sweep)]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-5,2e-5", ["1e-5", "2e-5"]),
        ("[1,2],[3, 4]", ["[1,2]", "[3, 4]"]),
        ("'a,b', \"c\",d", ["'a,b'", '"c"', "d"]),
        ("null", ["null"]),
        ("1,,2", []),
        ("", []),
        ("1]", []),
        ("1], [2", []),
        ("[1", []),
        ("1 #,2", []),
        ("#1,2", []),
        ("1,2 # both", []),
        ("'#1',a#2", ["'#1'", "a#2"]),
        ("{a: 1,b: 2},{a: 3}", ["{a: 1,b: 2}", "{a: 3}"]),
    ],
)
def test_values_are_split_outside_of_brackets_and_quotes(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_each_value_is_combined_with_each(project: Path) -> None:
    runs = runs_of_sweep("a.yaml", ["run.name=first"], ["optim.lr=1e-5,2e-5", "run.seed=1,2"])
    assert [run.name for run in runs] == [
        "lr=1e-05_seed=1",
        "lr=1e-05_seed=2",
        "lr=2e-05_seed=1",
        "lr=2e-05_seed=2",
    ]
    assert runs[1].values == {"optim.lr": 1e-05, "run.seed": 2}
    config = runs[1].config
    assert (config.optim.lr, config.run.seed) == (1e-05, 2)
    assert (config.run.root, config.run.name) == ("runs/first", "lr=1e-05_seed=2")
    # The overrides make this very config.
    overrides = ["run.name=first", *runs[1].overrides]
    assert load_config("a.yaml", overrides) == config


def test_names_say_which_key_is_meant(project: Path) -> None:
    swept = names("optim.lr=1", "data.train=shards,'*.jsonl'", "model.path=a b/c")
    assert swept == ["lr=1.0_train=shards_path=a-b-c", "lr=1.0_train=.jsonl_path=a-b-c"]
    twice = names("train.epochs=1", "data.validation=null", "train.max_steps=2")
    assert twice == ["epochs=1_validation=null_max_steps=2"]


def test_names_are_unique_and_short(project: Path) -> None:
    alike = names("data.train='a b',a-b")
    assert len(set(alike)) == 2
    assert all(name.startswith("train=a-b-") for name in alike)
    assert alike == names("data.train='a b',a-b")
    (long,) = names(f"data.train={'x' * 200}", f"model.path={'y' * 200}")
    assert len(long) <= 72


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (["optim.lr"], "--sweep 'optim.lr': must be section.key=value,value,..."),
        (["lr=1"], "--sweep 'lr=1': must be section.key=value,value,..."),
        (["optim.lr=1,,2"], "--sweep 'optim.lr=1,,2': the values are not YAML; quote them"),
        (
            ["optim.lr=1", "optim.lr=2"],
            "--sweep optim.lr: is swept twice; give all its values at once",
        ),
        (
            ["train.epochs=1,2"],
            "--sweep train.epochs: is set to one value, too; remove train.epochs=... from the"
            " command line",
        ),
        (
            ["run.name=a,b"],
            "--sweep run.name: says where a run is, not what it learns, and cannot be swept;"
            " launch one run for each value, with another run.name",
        ),
        (
            ["optim.lr=1e-5,0.00001"],
            "--sweep optim.lr: 0.00001 is the same value as 1e-5; give it once",
        ),
        (
            [f"run.seed={','.join(map(str, range(501)))}", "optim.lr=1,2"],
            f"--sweep: 501 × 2 = 1,002 runs; at most {MAX_RUNS:,} are launched",
        ),
        (
            ["optim.lr=x,1e-5,-1", "run.seed=1,y"],
            "override 'optim.lr=x': optim.lr: must be a number, got 'x'\n"
            "override 'run.seed=y': run.seed: must be a whole number, got 'y'\n"
            "override 'optim.lr=-1': optim.lr: must be greater than 0, got -1",
        ),
    ],
)
def test_mistakes(project: Path, sweep: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        runs_of_sweep("a.yaml", ["train.epochs=3"], sweep)
    assert str(caught.value) == message


def test_a_place_in_slurm_is_not_swept(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--sweep slurm\.nodes: says where a run is"):
        runs_of_sweep("a.yaml", [], ["slurm.nodes=1,2"])
