"""A rank's device, what DeepSpeed and Lightning hear of it, and the timeout of collectives."""

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from llada_sft.cluster.launch.ports import free_port
from llada_sft.config import Config
from llada_sft.errors import ConfigError
from llada_sft.placement import Placement
from llada_sft.training import ranks
from llada_sft.training.consensus import Consensus
from llada_sft.training.ranks import choose_device, init_ranks, leave_ranks, optimizer_threads
from llada_sft.training.strategy import Zero3Strategy

THIRD_OF_NODE = Placement(7, 8, 3, 1, "node1", 1234)
TIMEOUT = timedelta(seconds=4321)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a rank sets for good."""
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        monkeypatch.setattr(distributed_c10d, name, getattr(distributed_c10d, name))
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def with_gpus(monkeypatch: pytest.MonkeyPatch, visible: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)


@pytest.mark.parametrize(
    ("visible", "ordinal"),
    [
        pytest.param(8, 3, id="all of the node's"),
        pytest.param(4, 3, id="one for each rank"),
        pytest.param(1, 0, id="its own alone, as --gpus-per-task shows it"),
    ],
)
@pytest.mark.usefixtures("environment")
def test_the_local_rank_that_deepspeed_gets_is_the_number_of_the_device(
    monkeypatch: pytest.MonkeyPatch, visible: int, ordinal: int
) -> None:
    called: dict[str, Any] = {}
    with_gpus(monkeypatch, visible)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: called.update(device=device))
    monkeypatch.setattr(
        ranks.deepspeed, "init_distributed", lambda *args, **options: called.update(args=args)
    )
    device = choose_device("auto", THIRD_OF_NODE.local_rank)
    init_ranks(THIRD_OF_NODE, device, TIMEOUT)
    assert called == {"device": torch.device("cuda", ordinal), "args": ("nccl",)}
    # comm/torch.py and zero/partition_parameters.py make devices of it.
    assert os.environ["LOCAL_RANK"] == str(ordinal)
    assert os.environ["RANK"] == "7"
    strategy = Zero3Strategy({}, THIRD_OF_NODE, device, "bf16", TIMEOUT)
    assert (strategy.local_rank, strategy.root_device) == (ordinal, device)
    # Lightning sets the variables once more.
    os.environ["LOCAL_RANK"] = "another"
    strategy._set_node_environment_variables()
    assert os.environ["LOCAL_RANK"] == str(ordinal)


@pytest.mark.usefixtures("environment")
def test_on_the_cpu_the_local_rank_is_that_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 0)
    monkeypatch.setattr(ranks.deepspeed, "init_distributed", lambda *args, **options: None)
    device = choose_device("auto", 3)
    init_ranks(THIRD_OF_NODE, device, TIMEOUT)
    assert os.environ["LOCAL_RANK"] == "3"
    assert Zero3Strategy({}, THIRD_OF_NODE, device, "bf16", TIMEOUT).local_rank == 3


def test_fewer_gpus_than_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 2)
    with pytest.raises(ConfigError, match="rank 3 of this node has no GPU, there are 2; use"):
        choose_device("auto", 3)


def timeout_of(group: Any) -> timedelta:
    found: timedelta = group._get_backend(torch.device("cpu")).options._timeout
    return found


@pytest.mark.usefixtures("environment")
def test_every_process_group_has_the_timeout() -> None:
    """torch gives 30 minutes, with NCCL 10, to each group that is made without one."""
    init_ranks(Placement(0, 1, 0, 0, "127.0.0.1", free_port()), torch.device("cpu"), TIMEOUT)
    try:
        assert timeout_of(distributed_c10d._get_default_group()) == TIMEOUT
        assert timeout_of(Consensus()._group) == TIMEOUT
        # As DeepSpeed makes those of ZeRO.
        assert timeout_of(dist.new_group([0])) == TIMEOUT
        assert distributed_c10d._get_default_timeout(dist.Backend.NCCL) == TIMEOUT
    finally:
        leave_ranks()


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(("given", "seconds"), [(None, "4321"), ("99", "99")])
def test_nccls_own_watchdog_comes_later_too(
    monkeypatch: pytest.MonkeyPatch, given: str | None, seconds: str
) -> None:
    name = "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"
    os.environ.pop(name, None)
    if given is not None:
        os.environ[name] = given
    monkeypatch.setattr(ranks.deepspeed, "init_distributed", lambda *args, **options: None)
    init_ranks(THIRD_OF_NODE, torch.device("cpu"), TIMEOUT)
    assert os.environ[name] == seconds


@pytest.mark.parametrize(
    ("timeout_s", "grace_s", "given_min", "seconds"),
    [
        pytest.param(900, 1800, None, 2820, id="the defaults"),
        pytest.param(900, 1800, 30, 2820, id="less than the watchdog needs"),
        pytest.param(900, 1800, 60, 3600, id="more"),
        pytest.param(7200, 36_000, None, 43_320, id="a patient watchdog"),
        pytest.param(1, 0, None, 121, id="an impatient one"),
    ],
)
def test_the_watchdog_comes_before_any_collective_gives_up(
    timeout_s: int, grace_s: int, given_min: int | None, seconds: int
) -> None:
    config = Config.model_validate(
        {
            "run": {"name": "a"},
            "model": {"path": "m"},
            "data": {"train": "d"},
            "train": {"hang_timeout_s": timeout_s, "hang_grace_s": grace_s},
            "deepspeed": {"timeout_min": given_min},
        }
    )
    assert config.collective_timeout_s == seconds


def test_an_optimizer_on_the_cpu_takes_the_cores_of_its_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert optimizer_threads("none", 8) is None
    assert optimizer_threads("cpu", 3) == 3
    assert optimizer_threads("cpu", 8) == 4
