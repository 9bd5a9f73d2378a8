"""Why a job is pending, in plain words."""

import pytest

from llada_sft.cluster.watch import pending

NOW = 1_795_828_000.0


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Priority", "Priority: jobs of higher priority are before it: nothing to do but wait"),
        ("Resources", "Resources: it is among the next to start, and waits for nodes to become"),
        ("QOSMaxJobsPerUserLimit", "QOSMaxJobsPerUserLimit: you run as many jobs of its qos as it"),
        ("QOSGrpNodeLimit", "QOSGrpNodeLimit: all jobs of its qos together are at its limit"),
        ("QOSMaxGRESPerUser", "QOSMaxGRESPerUser: it is above what its qos allows"),
        ("AssocGrpGRES", "AssocGrpGRES: all jobs of your account together are at its limit"),
        ("AssocMaxJobsLimit", "AssocMaxJobsLimit: it is above what your account allows"),
        ("Dependency", "Dependency: another job must end first"),
        ("PartitionTimeLimit", "PartitionTimeLimit: slurm.time_min is above its partition's limit"),
        (
            "ReqNodeNotAvail,_UnavailableNodes:node[1-2]",
            "ReqNodeNotAvail,_UnavailableNodes:node[1-2]: nodes that it needs are down, drained",
        ),
        ("JobHeldUser", "JobHeldUser: you hold it; to release it:  scontrol release 42"),
        ("BeginTime", "BeginTime: it was asked to start later"),
    ],
)
def test_common_reasons_have_words(reason: str, words: str) -> None:
    assert pending.in_words(reason, "42").startswith(words)


@pytest.mark.parametrize("reason", ["OutOfCoffee", "{job}", "%s"])
def test_an_unknown_reason_is_passed_on(reason: str) -> None:
    assert pending.in_words(reason, "42") == reason


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, ""),
        ({"Reason": "(null)"}, ""),
        ({"Reason": "(Priority)"}, "Priority"),
        ({"Reason": "Resources"}, "Resources"),
    ],
)
def test_the_reason_of_a_job(fields: dict[str, str], reason: str) -> None:
    assert pending.reason_of(fields) == reason


@pytest.mark.parametrize("start", ["Unknown", "N/A", "", "2026-11-28T01:02:03", "²", "9" * 99])
def test_a_start_that_slurm_does_not_know(start: str) -> None:
    assert pending.start_time({"StartTime": start}) is None
    assert pending.start_line(None, NOW) == "no estimate yet"


@pytest.mark.parametrize(
    ("seconds", "away"), [(-30, "0 min"), (600, "10 min"), (5400, "2 h"), (3 * 86400, "72 h")]
)
def test_an_estimated_start(seconds: int, away: str) -> None:
    start = pending.start_time({"StartTime": str(int(NOW) + seconds)})
    line = pending.start_line(start, NOW)
    assert line.endswith(f" UTC, in {away} (SLURM's estimate)")
    assert pending.start_line(NOW, NOW).startswith("2026-11-28 01:06 UTC")
