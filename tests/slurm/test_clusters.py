"""docs/clusters.md on a real SLURM: presets, what of an option arrives, --after, a container."""

import re
import sys
from pathlib import Path

import pytest
from cluster import Cluster, ClusterError
from conftest import Launched, Shell, job_id, require
from processes import wait_until

from llada_sft.cluster import journal
from tests.doc_commands import commands_of

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
COPY, PRINT, FIRST, SECOND = commands_of("docs/clusters.md")
TIMEOUT_S = 240
# Jobs wait: none of them is to train.
PRESET = """\
slurm:
  partition: low
  extra: {begin: now+3600, comment: "a # b"}
  srun_args: {cpu-bind: none}
"""
HOSTILE = r"""a b # c 'd' "e" \ \n $(touch pwned) `touch pwned` ; -x %j #SBATCH ä日本"""
# Runs what it is given, as apptainer would, in a place that has no scontrol.
APPTAINER = """\
#!/bin/bash
printf '%s\\n' "$@" > {seen}
while [[ $1 != */train.sif ]]; do [[ $1 == --pwd ]] && cd "$2"; shift; done
shift 2
PATH=/nowhere exec /usr/bin/env "$@"
"""


@pytest.fixture
def folder(project: Path, tmp_path: Path) -> Path:
    """A checkout with presets of the user's own."""
    for name in ("launch.py", "slurm", "utils", "demo"):
        (tmp_path / name).symlink_to(project / name)
    (tmp_path / "config/cluster").mkdir(parents=True)
    for name in ("demo.yaml", "cluster/example.yaml"):
        (tmp_path / "config" / name).write_text((ROOT / "config" / name).read_text())
    return tmp_path


def test_a_preset_and_two_runs_after_each_other(
    cluster: Cluster, folder: Path, shell: Shell
) -> None:
    shell(COPY)
    assert "partition: gpu  # config/cluster/mine.yaml:14" in shell(PRINT)
    preset = folder / "config/cluster/mine.yaml"
    preset.write_text(PRESET)
    first = job_id(shell(FIRST))
    waiting = cluster.job(first)
    assert (waiting["Comment"], waiting["Reason"]) == ("a # b", "BeginTime")
    # --after is the second job's only reason to wait.
    preset.write_text(PRESET.replace("begin: now+3600, ", ""))
    second = job_id(shell(SECOND))
    assert cluster.job(second)["Dependency"] == f"afterany:{first}(unfulfilled)"
    cluster.run(["scancel", first, second])
    again = job_id(shell("llada-sft resume runs/first slurm.extra.hold=true"))
    held = cluster.job(again)
    assert (held["Comment"], held["Reason"]) == ("a # b", "JobHeldUser")
    cluster.run(["scancel", again])


def test_a_value_arrives_as_it_is(cluster: Cluster, launched: Launched, project: Path) -> None:
    value = HOSTILE.replace("'", "''")
    _, job = launched("hostile", 1, f"slurm.extra={{hold: true, comment: '{value}'}}")
    assert cluster.job(job)["Comment"] == HOSTILE
    assert not list(project.rglob("pwned"))


def test_ranks_in_a_container_are_requeued_by_the_batch_script(
    cluster: Cluster, launched: Launched, project: Path
) -> None:
    tools = project / "tools"
    tools.mkdir()
    seen = project / "apptainer.seen"
    (tools / "apptainer").write_text(APPTAINER.format(seen=seen))
    (tools / "apptainer").chmod(0o755)
    (project / "train.sif").touch()
    (project / "tools/setup.sh").write_text(f'export PATH="{tools}:$PATH"\n')
    given = f"{{kind: apptainer, image: train.sif, mounts: [.], python: {sys.executable}}}"
    run, job = launched(
        "contained",
        100_000,
        "slurm.ranks_per_node=1",
        f"slurm.setup={tools}/setup.sh",
        f"slurm.container={given}",
        "train.epochs=100000",
    )

    def trains() -> bool:
        log = next(iter(run.slurm.glob("*_0_log.out")), None)
        return log is not None and re.search(r"^step \d+/", log.read_text(), re.M) is not None

    assert wait_until(trains, TIMEOUT_S)
    cluster.run(["scancel", "--signal=USR2", job])
    fields = cluster.wait_job(job, ["PENDING", "RUNNING"], TIMEOUT_S, restarts=1)
    assert fields["Restarts"] == "1"
    ended = [e for e in journal.read(run.journal) if e["event"] == "ended"]
    assert [(e["cause"], e["exit_code"]) for e in ended] == [
        ("told to stop", 1),
        ("told to stop", 0),
    ]
    assert "scontrol not found on this machine" in ended[0]["error"]
    words = seen.read_text().splitlines()
    assert words[:2] == ["exec", "--bind"]
    assert words[words.index("--pwd") + 1] == str(run.path)
    cluster.run(["scancel", job])


def test_a_cluster_that_enforces_keys(project: Path) -> None:
    """It refuses an empty key, and takes the user's own where none is given."""
    require("accounting")
    enforced = "TrackWCKey=yes\nAccountingStorageEnforce=wckeys\n"
    with Cluster("keys", "accounting", enforced) as cluster:
        for change in ("add user root wckey=mine", "modify user root set defaultwckey=mine"):
            cluster.run(["sacctmgr", "--immediate", *change.split()])
        launch = [sys.executable, "launch.py", "--config", "config/demo.yaml"]
        launch += ["slurm.extra.hold=true", "run.name=keys"]

        def key_of(*overrides: str) -> str:
            printed = cluster.run([*launch, *overrides], cwd=project)
            key = cluster.run(["squeue", "--noheader", "--format=%w", f"--jobs={job_id(printed)}"])
            cluster.run(["scancel", job_id(printed)])
            return key.strip()

        # SLURM marks a default.
        assert key_of() == "*mine"
        assert key_of("slurm.extra.wckey=mine") == "mine"
        with pytest.raises(ClusterError, match=r"slurm\.extra\.wckey: .*: Invalid wckey"):
            key_of("slurm.extra.wckey=theirs")
