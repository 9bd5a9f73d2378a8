"""Adapters without a gradient end a training: states as DeepSpeed keeps them at stages 1 and 2."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from llada_sft.errors import ConfigError
from llada_sft.training.callbacks.adapters_learn import AdaptersLearn
from tests.unit.training.ranks import on_ranks

# Names of parameters, with Adam's first moment of each rank's slice; None: another rank has it all.
Moments = dict[str, list[float] | None]
OF_A, OF_B = "blocks.0.q_proj.lora_A.default.weight", "blocks.0.q_proj.lora_B.default.weight"


def after_step(
    callback: AdaptersLearn, moments: Moments, applied: bool = True, rate: float = 1e-3
) -> None:
    """Call the callback of a rank as after a step."""
    values = [value for moment in moments.values() for value in moment or []]
    flat, start = nn.Parameter(torch.zeros(len(values))), 0
    named = []
    for name, moment in moments.items():
        parameter: Any = nn.Parameter(torch.zeros(1))
        parameter._hp_mapping = None
        if moment is not None:
            where = SimpleNamespace(start=start, numel=len(moment))
            parameter._hp_mapping = SimpleNamespace(param_group_index=0, hp_fragment_address=where)
            start += len(moment)
        named.append((name, parameter))
    zero = SimpleNamespace(
        single_partition_of_fp32_groups=[flat],
        optimizer=SimpleNamespace(state={flat: {"exp_avg": torch.tensor(values)}}),
    )
    engine = SimpleNamespace(optimizer=zero)
    strategy = SimpleNamespace(step_applied=applied, deepspeed_engine=engine)
    trainer: Any = SimpleNamespace(strategy=strategy, global_step=7)
    module = SimpleNamespace(network=SimpleNamespace(named_parameters=lambda: named))
    batch = SimpleNamespace(pace=SimpleNamespace(rate=rate))
    callback.on_train_batch_end(trainer, module, None, batch, 0)


def outcomes(*steps: list[Moments], enabled: bool = True, **more: Any) -> list[Any]:
    """Let as many ranks as each step has moments of make the steps."""

    def work(rank: int, consensus: Any) -> None:
        callback = AdaptersLearn(enabled, consensus)
        for step in steps:
            after_step(callback, step[rank], **more)

    return on_ranks(len(steps[0]), work)


def test_b_learns_in_the_first_step_and_a_in_the_second() -> None:
    first: Moments = {OF_A: [0.0, 0.0], OF_B: [0.0, 0.5]}
    second: Moments = {OF_A: [0.1, 0.0], OF_B: [0.0, 0.5]}
    assert outcomes([first], [second], [first]) == [None]
    (error,) = outcomes([first], [first])
    assert isinstance(error, ConfigError)
    assert str(error) == (
        f"step 7: adapters without a gradient: {OF_A}: they would never learn; remove them from"
        " lora.targets"
    )


def test_one_rank_that_has_a_moved_part_is_enough() -> None:
    still: Moments = {OF_A: None, OF_B: [0.0, 0.0]}
    moved: Moments = {OF_A: [0.0], OF_B: [0.5]}
    elsewhere: Moments = {OF_A: [0.0], OF_B: None}
    assert outcomes([still, moved]) == [None, None]
    for error in outcomes([still, elsewhere]):
        assert f"adapters without a gradient: {OF_B}: " in str(error)


def test_a_step_that_was_skipped_or_has_no_rate_does_not_count() -> None:
    still: Moments = {OF_A: [0.0], OF_B: [0.0]}
    assert outcomes([still], applied=False) == [None]
    assert outcomes([still], rate=0.0) == [None]
    assert outcomes([still], enabled=False) == [None]


def test_a_few_are_named_and_the_others_counted() -> None:
    many: Moments = {f"blocks.{n}.q_proj.lora_B.default.weight": [0.0] for n in range(6)}
    (error,) = outcomes([many])
    assert "blocks.3.q_proj.lora_B.default.weight and 2 more: they would" in str(error)
