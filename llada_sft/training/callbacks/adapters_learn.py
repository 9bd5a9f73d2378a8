"""Ends a training whose adapters do not all learn: it would only look like one.

B is zero before the first step, so A has no gradient in it. With a step of a learning rate above 0
B is not zero any more, and A has one in the next. What is asked is Adam's first moment, which is
not zero where a gradient was not.
"""

from typing import Any, cast

import lightning.pytorch as pl
from deepspeed.utils import safe_get_local_optimizer_state
from torch import Tensor, nn

from llada_sft.errors import ConfigError
from llada_sft.model.adapter_plan import MAGNITUDE, A, B
from llada_sft.model.partition import is_partitioned
from llada_sft.training.consensus import Consensus
from llada_sft.training.strategy import Zero3Strategy

_MOST_NAMED = 4


class AdaptersLearn(pl.Callback):
    """Looks at every adapter after the first two steps that count; every rank must do so.

    Args:
        enabled: Whether there are adapters.
        consensus: The agreement of the ranks.
    """

    def __init__(self, enabled: bool, consensus: Consensus) -> None:
        self._consensus = consensus
        # What has a gradient in the first step that counts, and in the second.
        self._due = [(f".{B}.", f".{MAGNITUDE}."), (f".{A}.",)] if enabled else []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the adapters that had their first gradient in this step.

        Raises:
            ConfigError: Some had none.
        """
        strategy = cast(Zero3Strategy, trainer.strategy)
        if not self._due or not strategy.step_applied or batch.pace.rate == 0:
            return
        parts, zero = self._due.pop(0), strategy.deepspeed_engine.optimizer
        # On this rank: each has a slice of a parameter, or none of it.
        still_here = {
            name
            for name, parameter in pl_module.network.named_parameters()
            if parameter.requires_grad
            and any(part in name for part in parts)
            and not _has_moved(zero, parameter)
        }
        of_ranks = cast(list[set[str]], self._consensus.gather(still_here))
        if still := sorted(set.intersection(*of_ranks)):
            named = ", ".join(still[:_MOST_NAMED])
            more = f" and {len(still) - _MOST_NAMED} more" if len(still) > _MOST_NAMED else ""
            raise ConfigError(
                f"step {trainer.global_step}: adapters without a gradient: {named}{more}: they"
                " would never learn; remove them from lora.targets"
            )


def _has_moved(zero: Any, parameter: nn.Parameter) -> bool:
    """Return whether this rank's part of a parameter has had a gradient."""
    moment = _moment(zero, parameter)
    return moment is not None and bool(moment.any())


def _moment(zero: Any, parameter: Any) -> Tensor | None:
    if is_partitioned(parameter):
        return cast(Tensor, safe_get_local_optimizer_state(parameter, "exp_avg"))
    # At stages 1 and 2 DeepSpeed's own functions know the states of the first group alone: they are
    # looked for when that has made its first step, and never again.
    if (mapping := parameter._hp_mapping) is None:
        return None
    flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
    where = mapping.hp_fragment_address
    state: Tensor = zero.optimizer.state[flat]["exp_avg"]
    return state.narrow(0, where.start, where.numel)
