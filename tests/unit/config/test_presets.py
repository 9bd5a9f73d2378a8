"""Presets of clusters: what wins, where each value is from, and where a mistake stands."""

import json
from pathlib import Path

import pytest

from llada_sft.config import load_config, resolve_paths
from llada_sft.config.reader import dump_with_origins, load_with_origins
from llada_sft.errors import ConfigError

ROOT = Path(__file__).parents[3]
RUN = """\
run: {name: a}
model: {path: model}
data:
  train: shards
slurm:
  nodes: 2
  extra: {nice: 1}
"""
PRESET = """\
# Of a cluster.
slurm:
  partition: gpu
  nodes: 8
  extra:
    exclusive: true
    comment: "a # b"
  setup: ours.sh
optim: {betas: [0.5, 0.6]}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config/cluster").mkdir(parents=True)
    (tmp_path / "a.yaml").write_text(RUN)
    (tmp_path / "config/cluster/ours.yaml").write_text(PRESET)
    return tmp_path


def problems_of(*overrides: str, preset: str = "ours") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config("a.yaml", overrides, preset)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    "preset", ["ours", "config/cluster/ours.yaml", "./config/cluster/ours.yaml"]
)
def test_the_run_wins_over_the_preset_and_the_command_line_over_both(preset: str) -> None:
    config = load_config("a.yaml", ["slurm.partition=low", "slurm.extra.exclusive=false"], preset)
    slurm = config.slurm
    assert (slurm.nodes, slurm.partition, slurm.setup) == (2, "low", "ours.sh")
    assert slurm.extra == {"nice": 1, "exclusive": False, "comment": "a # b"}
    assert config.optim.betas == (0.5, 0.6)
    assert load_config("a.yaml").slurm.partition is None


def test_null_in_the_run_takes_the_presets_value_away() -> None:
    assert load_config("a.yaml", ["slurm.setup=null"], "ours").slurm.setup is None


def test_each_value_says_where_it_is_from_and_reads_back(folder: Path) -> None:
    config, origin = load_with_origins("a.yaml", ["optim.lr=1"], "ours")
    config = resolve_paths(config, folder)
    text = dump_with_origins(config, origin)
    (folder / "b.yaml").write_text(text)
    assert load_config("b.yaml") == config
    lines = [line.strip() for line in text.splitlines()]
    assert {
        "name: a  # a.yaml:1",
        f"setup: {folder}/ours.sh  # config/cluster/ours.yaml:8",
        f"train: {folder}/shards  # a.yaml:4",
        "lr: 1.0  # command line",
        "- 0.5  # config/cluster/ours.yaml:9",
        "comment: 'a # b'  # config/cluster/ours.yaml:7",
        "nice: 1  # a.yaml:7",
        "nodes: 2  # a.yaml:6",
        "srun_args: {}  # default",
        "seed: 0  # default",
    } <= set(lines)


@pytest.mark.parametrize(
    "value",
    [
        "x " * 200 + "# '\" ä",
        "a\u2028b c",
        "\x85",
        "\x85 a\x85",
        "a\n\n b\n",
        "a\x0b b",
        " # ",
        "- a: b",
        "|",
        "",
    ],
)
def test_whatever_a_value_is_it_reads_back(folder: Path, value: str) -> None:
    # A path may have a newline; a comment must not.
    (folder / "a\n#.yaml").write_text(RUN)
    given = [
        f"model.path={json.dumps('p' + value)}",
        f"log.wandb_project={json.dumps('p' + value)}",
    ]
    config, origin = load_with_origins("a\n#.yaml", given)
    (folder / "b.yaml").write_text(dump_with_origins(config, origin))
    assert load_config("b.yaml") == config
    assert config.model.path == "p" + value


def test_a_mistake_is_named_with_the_file_in_which_it_stands(folder: Path) -> None:
    (folder / "config/cluster/ours.yaml").write_text(
        "slurm:\n  partitoin: gpu\n  time_min: x\n  time_min: y\n  nodes: z\noptim: {lr: -1}\n"
    )
    (folder / "a.yaml").write_text(RUN + "train: {epochs: -1}\n")
    assert problems_of("log.level=loud") == [
        "config/cluster/ours.yaml:2: slurm.partitoin: unknown key; did you mean 'partition'?",
        "config/cluster/ours.yaml:4: slurm.time_min: given twice, first on line 3; keep one",
        "config/cluster/ours.yaml:4: slurm.time_min: must be a whole number, got 'y'",
        "config/cluster/ours.yaml:6: optim.lr: must be greater than 0, got -1",
        "a.yaml:8: train.epochs: must be at least 1, got -1",
        "override 'log.level=loud': log.level: must be 'info' or 'debug', got 'loud'",
    ]


def test_an_unknown_preset_lists_those_that_there_are(folder: Path) -> None:
    (folder / "config/cluster/b.yaml").write_text("slurm: {}")
    assert problems_of(preset="our") == [
        "--cluster: config/cluster has no 'our'; it has b, ours; take one of them, or a path"
    ]
    assert problems_of(preset="x/our") == ["x/our: cannot be read: No such file or directory"]
    assert problems_of(preset="./config") == ["config: cannot be read: Is a directory"]


def test_files_that_are_no_presets(folder: Path) -> None:
    preset = folder / "config/cluster/ours.yaml"
    for text, said in [
        ("", "config/cluster/ours.yaml: empty; write the sections that it presets"),
        ("- a", "config/cluster/ours.yaml:1: must be a mapping of sections, got a list"),
        ("a: [", "config/cluster/ours.yaml:1: not YAML: while parsing a flow node"),
    ]:
        preset.write_text(text)
        (problem,) = problems_of()
        assert problem.startswith(said)


@pytest.mark.parametrize(
    "file", sorted((ROOT / "config/cluster").glob("*.yaml")), ids=lambda file: file.name
)
def test_a_shipped_preset_goes_with_a_shipped_config(file: Path) -> None:
    config = load_config(ROOT / "config/zero3.yaml", [], str(file))
    assert config.slurm.partition == "gpu"
