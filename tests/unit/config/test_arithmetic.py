"""The numbers printed before a run, by hand."""

import pytest

from llada_sft.config import Config
from llada_sft.config.arithmetic import RowCount, batch_arithmetic, on_nodes, steps_of
from llada_sft.training.build_network import most_tokens

NODES = "the step is bound by ZeRO-3's traffic between nodes (docs/data.md)"
HOST = "the step is bound by the host, not the GPU (docs/data.md)"


def config(**train: int) -> Config:
    return Config.model_validate(
        {
            "run": {"name": "a"},
            "model": {"path": "m"},
            "data": {"train": "d"},
            "train": {"micro_batch_size": 2, "accumulate_grad_batches": 4, **train},
            "slurm": {"nodes": 4},
        }
    )


def test_without_the_files() -> None:
    assert batch_arithmetic(config()) == [
        "world size       32 = 4 nodes × 8 ranks",
        "global batch     256 examples = 2 micro × 4 accumulated × 32 ranks",
        "tokens per step  at most 1,048,576 = 256 × 4,096",
        "a micro-batch    at most 8,192 tokens = 2 × 4,096",
        f"warning          a micro-batch has at most 8,192 tokens: below about 10,000 {NODES}",
    ]


def test_with_the_files() -> None:
    rows = RowCount(total=4_500_000, busiest_rank=140_630, estimated=True)
    assert batch_arithmetic(config(max_steps=100), rows)[5:] == [
        "rows per epoch   ≈ 4,500,000",
        "steps per epoch  ≈ 17,579, if each of the busiest rank's ≈ 140,630 rows makes one example",
        "steps in all     ≈ 52,737 = 3 epochs × 17,579",
        "                 stops after 100 (train.max_steps)",
    ]


def test_packed() -> None:
    packed = config(micro_batch_size=1, max_steps=100).model_dump()
    packed["data"] |= {"batching": "packed", "max_tokens": 8192, "end": 1}
    rows = RowCount(total=4_500_000, busiest_rank=140_630, estimated=True)
    assert batch_arithmetic(Config.model_validate(packed), rows)[1:] == [
        "global batch     at most 1,048,576 tokens = 8,192 micro × 4 accumulated × 32 ranks",
        f"warning          a micro-batch has at most 8,192 tokens: below about 10,000 {NODES}",
        "rows per epoch   ≈ 4,500,000",
        "steps per epoch  depends on token counts; estimated when training starts",
        "                 stops after 100 (train.max_steps)",
    ]


def test_pairs_halve_the_examples_of_a_batch() -> None:
    paired = config().model_dump()
    paired["objective"] |= {"pairs": "antithetic"}
    one_each = Config.model_validate(paired)
    rows = RowCount(total=4_500, busiest_rank=141)
    lines = batch_arithmetic(one_each, rows)
    assert lines[1:5] == [
        "global batch     128 examples = 2 micro ÷ 2 draws × 4 accumulated × 32 ranks",
        "tokens per step  at most 1,048,576 = 256 × 4,096",
        "a micro-batch    at most 8,192 tokens = 2 × 4,096",
        "pairs            each example is twice in its micro-batch (objective.pairs): one example"
        " of the batch and of the epoch, two rows or twice its tokens of the micro-batch",
    ]
    assert steps_of(one_each, 141) == 36
    assert "steps per epoch  36, if each of the busiest rank's 141 rows makes one example" in lines


def test_blocks_double_the_positions() -> None:
    blocks = config(micro_batch_size=1).model_dump()
    blocks["data"] |= {"batching": "packed", "max_tokens": 8192, "end": 1}
    blocks["objective"] |= {"kind": "block"}
    assert batch_arithmetic(Config.model_validate(blocks))[1:] == [
        "global batch     at most 1,048,576 tokens = 8,192 micro × 4 accumulated × 32 ranks",
        "blocks           of 32 tokens (objective.kind: block): the network runs on two positions"
        " for each token, a noisy and a clean one: at most 16,384 for a micro-batch; tokens, and"
        " tokens per second, are those of the data",
    ]
    assert most_tokens(Config.model_validate(blocks)) == 16_384


def test_sources() -> None:
    rows = RowCount(1_500, 600, by_source={"chat": (1_000, 2), "code": (500, 1)})
    expected = [
        "chat             1,000 rows × 2 epochs",
        "code             500 rows × 1 epochs",
        "steps in all     75, if each of the busiest rank's 600 rows makes one example",
    ]
    assert batch_arithmetic(config(), rows)[5:] == expected


@pytest.mark.parametrize(
    ("train", "steps"), [({}, 30), ({"max_steps": 20}, 20), ({"epochs": 5}, 50), ({"epochs": 6}, 0)]
)
def test_a_warm_up_that_is_as_long_as_the_training(train: dict[str, int], steps: int) -> None:
    lines = batch_arithmetic(config(**train), RowCount(total=800, busiest_rank=80))
    warning = (
        f"warning          optim.warmup_steps, 50, is not below the {steps} steps of the training:"
        " optim.lr is not reached, or never kept"
    )
    found = [line for line in lines if "warmup_steps" in line]
    assert found == ([warning] if steps else [])


@pytest.mark.parametrize("lr", [1e-6, 2.5e-6])
def test_a_learning_rate_that_rises_at_the_end(lr: float) -> None:
    """`final_lr` keeps its default of 2.5e-06 where `lr` alone is set."""
    values = config().model_dump() | {"optim": {"lr": lr}}
    lines = batch_arithmetic(Config.model_validate(values), RowCount(total=800, busiest_rank=80))
    warning = (
        "warning          optim.final_lr, 2.5e-06, is above optim.lr, 1e-06: the learning rate"
        " rises at the end"
    )
    assert [line for line in lines if "final_lr" in line] == ([warning] if lr == 1e-6 else [])


@pytest.mark.parametrize(
    ("nodes", "elastic", "max_length", "more", "warning"),
    [
        (4, None, 5000, {}, None),
        (4, None, 4999, {}, f"9,998 tokens: below about 10,000 {NODES}"),
        (4, None, 2000, {}, f"4,000 tokens: below about 10,000 {NODES}"),
        (4, None, 1999, {}, f"3,998 tokens: below about 4,000 {HOST}"),
        (1, None, 4999, {}, None),
        (1, None, 2000, {}, None),
        (1, None, 1999, {}, f"3,998 tokens: below about 4,000 {HOST}"),
        (1, (1, 2), 2000, {}, f"4,000 tokens: below about 10,000 {NODES}"),
        (4, None, 1999, {"slurm": {"gpus_per_node": 0}}, None),
        (4, None, 1999, {"train": {"accelerator": "cpu"}}, None),
    ],
)
def test_a_micro_batch_with_little_to_compute(
    nodes: int,
    elastic: tuple[int, int] | None,
    max_length: int,
    more: dict[str, dict[str, object]],
    warning: str | None,
) -> None:
    fields = config().model_dump()
    fields["slurm"] |= {"nodes": nodes, "elastic": elastic} | more.get("slurm", {})
    fields["train"] |= more.get("train", {})
    fields["data"]["max_length"] = max_length
    lines = batch_arithmetic(Config.model_validate(fields))
    expected = [] if warning is None else [f"warning          a micro-batch has at most {warning}"]
    assert [line for line in lines if line.startswith("warning")] == expected


def test_a_last_step_that_is_not_full_counts() -> None:
    assert steps_of(config(), 9) == 2
    assert steps_of(config(), 8) == 1


def test_on_a_range_of_nodes() -> None:
    fields = config(accumulate_grad_batches=3).model_dump()
    fields["slurm"] |= {"elastic": (2, 4)}
    elastic = Config.model_validate(fields)
    assert batch_arithmetic(elastic)[-1] == (
        "elastic          2 to 4 nodes: 16 to 32 ranks, 6 to 3 accumulated; the same global batch"
    )
    assert {on_nodes(elastic, nodes).global_batch_size for nodes in (2, 3, 4)} == {192}
    assert elastic.largest_world_size == 32


def test_a_timeout_that_would_be_before_the_watchdog() -> None:
    given = config().model_dump()
    assert not any("timeout" in line for line in batch_arithmetic(Config.model_validate(given)))
    given["deepspeed"]["timeout_min"] = 30
    assert batch_arithmetic(Config.model_validate(given))[-1] == (
        "timeout          collectives have 2820 s, not the 1800 s of deepspeed.timeout_min: the"
        " watchdog must be first (train.hang_timeout_s + train.hang_grace_s)"
    )
    given["deepspeed"]["timeout_min"] = 47
    assert not any("timeout" in line for line in batch_arithmetic(Config.model_validate(given)))
