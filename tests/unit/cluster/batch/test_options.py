"""Options of sbatch and srun from a config: what arrives, what is refused, what is not repeated."""

import shlex
from pathlib import Path

import pytest

from llada_sft.cluster.batch import options
from llada_sft.cluster.batch.directives import sbatch_text
from llada_sft.cluster.batch.refused import check_extra
from llada_sft.config import load_config
from llada_sft.config.reader import load_with_origins
from llada_sft.errors import ConfigError, LaunchError
from llada_sft.run_dir import RunDir

ROOT = Path(__file__).parents[4]
RUN = RunDir(Path("/shared/runs/a"))


def text_of(*overrides: str) -> str:
    config = load_config(ROOT / "config/zero3.yaml", overrides)
    check_extra(config)
    return sbatch_text(config, RUN, "/bin/python")


def line_of(name: str, text: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(name)]
    return line


@pytest.mark.parametrize(
    ("extra", "directive"),
    [
        ("{exclusive: true}", "#SBATCH --exclusive"),
        ("{comment: 'a b # c'}", "#SBATCH --comment='a b # c'"),
        ("{comment: 'a\\b'}", r"#SBATCH --comment='a\\b'"),
        ("{mail-type: 'END,FAIL'}", "#SBATCH --mail-type=END,FAIL"),
        ("{wckey: ours}", "#SBATCH --wckey=ours"),
        ("{nice: -5}", "#SBATCH --nice=-5"),
    ],
)
def test_an_option_becomes_a_directive(extra: str, directive: str) -> None:
    assert directive in text_of(f"slurm.extra={extra}").splitlines()


def test_false_takes_an_option_away() -> None:
    given = ["slurm.extra={exclusive: false}", "slurm.srun_args={mpi: false}"]
    assert text_of(*given) == text_of()


def test_without_a_key_the_clusters_own_is_meant() -> None:
    """A cluster that enforces keys refuses an empty one."""
    assert "wckey" not in text_of()


@pytest.mark.parametrize("value", ["null", r'"a\nb"', r'"a\0b"', r'"a\u2028b"', "''", "[1]", "1.5"])
def test_values_that_no_option_has(value: str) -> None:
    for key in ("extra", "srun_args"):
        with pytest.raises(ConfigError, match=rf"^override .*slurm\.{key}\.comment: must "):
            load_config(ROOT / "config/zero3.yaml", [f"slurm.{key}={{comment: {value}}}"])


def test_a_value_of_two_lines() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(ROOT / "config/zero3.yaml", [r'slurm.extra={comment: "a\nb"}'])
    line = r"slurm.extra.comment: must be one line of text without control characters, got 'a\nb'"
    assert str(caught.value).endswith(line)


def test_a_value_that_is_too_long_for_sbatch() -> None:
    long = "'" * 1_601
    with pytest.raises(ConfigError, match=r"comment: must have at most 1,600 bytes, got \"'''"):
        load_config(ROOT / "config/zero3.yaml", [f'slurm.extra.comment="{long}"'])
    # The longest one, all of it escaped, fits into sbatch's 8,192 bytes.
    text = text_of(f'slurm.extra.comment="{long[:-1]}"')
    assert len(line_of("#SBATCH --comment", text)) < 8_192


def test_options_of_srun_are_arguments_of_the_step() -> None:
    given = "slurm.srun_args={cpu-bind: cores, mpi: pmix, label: true, comment: '$(x) `y` \"z\"'}"
    line = line_of("srun_options=", text_of(given))
    (words,) = [line.removeprefix("srun_options=(").removesuffix(")")]
    assert shlex.split(words) == [
        "--cpu-bind=cores",
        "--mpi=pmix",
        "--label",
        '--comment=$(x) `y` "z"',
    ]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("nodes", "is set by the batch script; remove it"),
        ("kill-on-bad-exit", "is set by the batch script; remove it"),
        ("ntask", "short for ntasks, which is set by the batch script; remove it"),
        ("container-image", "is set by the launcher; use slurm.container, or remove it"),
        ("quiet", "hides which rank was killed; remove it"),
        ("clusters", "is not for the ranks of a job; remove it"),
        ("pty", "would not start the ranks; remove it"),
        ("preserve-env", "would let variables of another job set options; remove it"),
        ("signal", "is for the job; use slurm.signal_lead_s"),
        ("time", "would end the ranks before the job; use slurm.time_min"),
    ],
)
def test_options_of_srun_that_are_refused(key: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        text_of(f"slurm.srun_args={{{key}: true, cpu-bind: cores}}")
    assert str(caught.value) == f"slurm.srun_args.{key}: {said}"


def test_a_refused_option_is_named_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(
        "run: {name: a}\nmodel: {path: model}\ndata: {train: shards}\n"
        "slurm:\n  extra:\n    array: 0-1\n"
    )
    Path("p.yaml").write_text("slurm:\n  srun_args:\n    pty: true\n  extra: {wait: true}\n")
    config, origin = load_with_origins("a.yaml", ["slurm.extra.quiet=true"], "./p.yaml")
    with pytest.raises(ConfigError) as caught:
        check_extra(config, origin)
    places = [line.split(": ")[:2] for line in str(caught.value).splitlines()]
    assert places == [
        ["a.yaml:6", "slurm.extra.array"],
        ["command line", "slurm.extra.quiet"],
        ["p.yaml:4", "slurm.extra.wait"],
        ["p.yaml:3", "slurm.srun_args.pty"],
    ]


def test_an_environment_is_left_to_the_launcher_where_a_preset_changes_it() -> None:
    check_extra(load_config(ROOT / "config/zero3.yaml", ["slurm.extra={export: false}"]))


def test_the_batch_script_is_not_put_into_a_container() -> None:
    with pytest.raises(ConfigError) as caught:
        text_of("slurm.extra={container-image: x}")
    assert str(caught.value) == (
        "slurm.extra.container-image: would put the batch script into a container, too; use"
        " slurm.container"
    )


def test_one_shot_options_are_known_abbreviated_too() -> None:
    once = "begin: now+1, dep: 'afterok:1', deadline: now+9, hold: true"
    extra = f"slurm.extra={{{once}, nice: 1, mem-bind: local}}"
    config = load_config(ROOT / "config/zero3.yaml", [extra])
    assert set(options.one_shots(config)) == {"begin", "dep", "deadline", "hold"}
    kept = options.without_one_shots(config).slurm.extra
    assert kept == {"nice": 1, "mem-bind": "local"}


@pytest.mark.parametrize("clusters", ["a,b", "all", " ALL "])
def test_several_clusters_are_refused(clusters: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CLUSTERS", clusters)
    with pytest.raises(LaunchError) as caught:
        options.require_one_cluster()
    assert str(caught.value) == (
        f"SLURM_CLUSTERS: names several clusters, got {clusters!r}: the job would not be found"
        " again on the one that sbatch takes; set it to one cluster"
    )
    monkeypatch.setenv("SLURM_CLUSTERS", "b")
    options.require_one_cluster()
