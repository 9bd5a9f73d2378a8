"""The ranks meet and compare their nodes, and each finds out what is trained."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch

from llada_sft.config.schema import Config
from llada_sft.model.adapter_plan import AdapterPlan
from llada_sft.model.configuration import NetworkConfig
from llada_sft.model.layers.balance import Balance
from llada_sft.placement import Placement
from llada_sft.run_dir import RunDir
from llada_sft.training.build_network import (
    base_weights,
    build_balance,
    plan_training,
    trained_network,
)
from llada_sft.training.callbacks.start_times import StartTimes
from llada_sft.training.consensus import Consensus
from llada_sft.training.host import Host
from llada_sft.training.log.library_warnings import quiet_libraries
from llada_sft.training.nodes.preflight import Preflight
from llada_sft.training.ranks import choose_device, init_ranks
from llada_sft.training.strategy import require_quantization


@dataclass(frozen=True)
class TrainingJob:
    """What a rank knows before it looks for a checkpoint.

    Attributes:
        config, run, placement, host: As `train` was given them.
        device: Where this rank computes.
        consensus: Of all ranks.
        network: The config of the network.
        balance: The losses of its routers; None if it has none.
        adapters: What is trained instead of the network's own parameters.
        base: What identifies the weights under the adapters.
        nodes: The node of each rank; empty where that is not known.
    """

    config: Config
    run: RunDir
    placement: Placement
    host: Host
    device: torch.device
    consensus: Consensus
    network: NetworkConfig
    balance: Balance | None
    adapters: AdapterPlan | None
    base: str
    nodes: Sequence[str]

    @property
    def adapters_record(self) -> dict[str, object] | None:
        """What checkpoints say of the adapters."""
        if self.adapters is None:
            return None
        return self.adapters.record(self.base, self.config.train.precision)

    def say(self, line: str) -> None:
        """Print a line, on rank 0."""
        if self.placement.rank == 0:
            print(line, flush=True)

    def warn(self, line: str) -> None:
        """Print a warning and add it to the journal, on rank 0."""
        if self.placement.rank == 0:
            print(f"warning: {line}", file=sys.stderr, flush=True)
            self.host.note({"event": "warning", "detail": line})

    def note_early_stop(self, reason: str) -> None:
        """Record on rank 0 why the training ends."""
        if self.placement.rank == 0:
            self.host.ended_early(f"early stop: {reason}")


def begin_training(
    config: Config, run: RunDir, placement: Placement, host: Host, start: StartTimes
) -> TrainingJob:
    """Meet the other ranks, and find out what is trained."""
    quiet_libraries()
    host.phase("ranks", None)
    preflight = Preflight(config, run, placement, host)
    preflight.compare_nodes()
    start.mark("nodes compared")
    device = choose_device(config.train.accelerator, placement.local_rank)
    require_quantization(config.deepspeed, device)
    torch.set_num_threads(config.train.threads_per_rank)
    init_ranks(placement, device, timedelta(seconds=config.collective_timeout_s))
    consensus = Consensus()
    # Files are removed from here on, and the imports took time: another process may own the run.
    host.require_owner()
    start.mark("ranks")
    preflight.measure_links(device)
    start.mark("links measured")
    network = trained_network(config)
    balance = build_balance(config.model, network)
    adapters = plan_training(config, network)
    base = "" if adapters is None else base_weights(config)
    job = TrainingJob(
        config=config,
        run=run,
        placement=placement,
        host=host,
        device=device,
        consensus=consensus,
        network=network,
        balance=balance,
        adapters=adapters,
        base=base,
        nodes=preflight.nodes,
    )
    if adapters is not None:
        job.say(adapters.line())
    return job
