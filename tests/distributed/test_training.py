"""The promises of training that need ranks: real gloo, real ZeRO-3, on this machine's CPU."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llada_sft.data.examples.quarantine import REMEDY
from llada_sft.run_dir import RunDir
from llada_sft.training.log.metrics_csv import read_metrics
from tests.distributed.ranks import run_on_ranks, started_ranks
from tests.distributed.training_workers import losses

pytestmark = pytest.mark.distributed
WORKERS = "tests.distributed.training_workers"
CONFIG = "config/demo.yaml"
SMALL = [
    "model.size.d_model=32",
    "model.size.n_layers=2",
    "model.size.mlp_hidden_size=48",
    "train.micro_batch_size=2",
    "train.accumulate_grad_batches=2",
    "optim.warmup_steps=2",
    # A background process takes seconds to start.
    "data.prefetch_steps=0",
    "log.every_n_steps=1",
    "log.tensorboard=false",
]


def write_shards(folder: Path, sizes: list[int]) -> Path:
    """Write shards of words that tell file and row apart."""
    folder.mkdir(parents=True)
    for shard, size in enumerate(sizes):
        rows = [{"prompt": "reverse abc", "response": "cba" * (1 + row % 3)} for row in range(size)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"shard_{shard}.jsonl").write_text(text)
    return folder


def with_data(demo: Path, train: Path) -> list[str]:
    return [
        *SMALL,
        f"model.path={demo / 'tokenizer'}",
        f"data.train={train}",
        f"data.validation={demo / 'data/heldout'}",
    ]


@pytest.mark.timeout(300)
def test_a_run_stopped_at_any_step_goes_on_bit_for_bit(demo: Path, tmp_path: Path) -> None:
    # 21 and 9 rows at 4 per step: steps 1-6 of each epoch, and rank 1 is short of rows from step 3.
    train = write_shards(tmp_path / "shards", [21, 9])
    overrides = [
        *with_data(demo, train),
        "train.epochs=2",
        "train.max_steps=null",
        "train.checkpoint_every_steps=4",
        "train.validate_every_steps=3",
        "train.validation_max_rows=7",
    ]
    stops = [1, 2, 4, 6, 7, 9]
    results = run_on_ranks(
        f"{WORKERS}:interrupted_runs", 2, 280,
        folder=str(tmp_path), config_file=CONFIG, overrides=overrides, stops=stops,
    )  # fmt: skip
    assert results[0]["outcomes"] == ["finished", *["stopped", "finished"] * len(stops)]
    whole = losses(tmp_path / "whole")
    assert list(whole) == list(range(1, 13))
    for stop in stops:
        assert losses(tmp_path / f"stopped_{stop}") == whole, f"stopped at {stop}"


@pytest.mark.timeout(300)
def test_a_packed_run_stopped_at_any_step_goes_on_bit_for_bit(demo: Path, tmp_path: Path) -> None:
    # Rows of 17, 20 and 23 tokens with their tails: 2 or 3 of them in a pack, 2 packs in a step.
    train = write_shards(tmp_path / "shards", [28, 9, 5])
    overrides = [
        *with_data(demo, train),
        "train.micro_batch_size=1",
        "data.batching=packed",
        "data.max_tokens=64",
        "data.pack_buffer=5",
        "data.end=2",
        "train.epochs=2",
        "train.max_steps=null",
        "train.checkpoint_every_steps=4",
        "train.validate_every_steps=3",
        "train.validation_max_rows=7",
    ]
    # The last lies in the second epoch.
    stops = [2, 8]
    results = run_on_ranks(
        f"{WORKERS}:interrupted_runs", 2, 280,
        folder=str(tmp_path), config_file=CONFIG, overrides=overrides, stops=stops,
    )  # fmt: skip
    assert results[0]["outcomes"] == ["finished", *["stopped", "finished"] * len(stops)]
    whole = losses(tmp_path / "whole")
    assert list(whole) == list(range(1, len(whole) + 1))
    assert len(whole) > max(stops) + 1
    for stop in stops:
        assert losses(tmp_path / f"stopped_{stop}") == whole, f"stopped at {stop}"


@pytest.mark.timeout(300)
def test_a_run_grouped_by_length_goes_on_bit_for_bit(demo: Path, tmp_path: Path) -> None:
    train = write_shards(tmp_path / "shards", [28, 9, 5])
    overrides = [
        *with_data(demo, train),
        "train.micro_batch_size=2",
        "train.accumulate_grad_batches=2",
        "data.group_by_length=true",
        "data.pack_buffer=5",
        "data.end=batch_max",
        "data.validation=null",
        "train.epochs=2",
        "train.max_steps=9",
        "train.checkpoint_every_steps=4",
    ]
    stops = [3]
    results = run_on_ranks(
        f"{WORKERS}:interrupted_runs", 2, 280,
        folder=str(tmp_path), config_file=CONFIG, overrides=overrides, stops=stops,
    )  # fmt: skip
    assert results[0]["outcomes"] == ["finished", "stopped", "finished"]
    whole = losses(tmp_path / "whole")
    assert list(whole) == list(range(1, 10))
    assert losses(tmp_path / "stopped_3") == whole


@pytest.mark.timeout(300)
def test_a_finished_run_does_nothing_more_unless_asked_for_more(demo: Path, tmp_path: Path) -> None:
    train = write_shards(tmp_path / "shards", [12, 9])
    # A constant rate: the schedule does not know how long the training will be.
    constant = ["optim.decay_fraction=0.0", "optim.schedule=warmup_constant_decay"]
    base = [*with_data(demo, train), *constant, "train.max_steps=null"]
    runs = []
    for limit, short, long in (("epochs", 1, 2), ("max_steps", 2, 5)):
        shorter, longer = ([*base, f"train.{limit}={value}"] for value in (short, long))
        again, once = (str(tmp_path / f"{limit}_{kind}") for kind in ("again", "once"))
        runs += [(again, shorter), (again, shorter), (again, longer), (once, longer)]
    with started_ranks(f"{WORKERS}:train_each", 2, config_file=CONFIG, runs=runs) as ranks:
        assert ranks.wait(280) is None, ranks.logs()
        assert ranks.results()[0] == [3, 3, 6, 6, 2, 2, 5, 5]
        said = "\n".join(ranks.whole_logs())
    assert said.count("train.epochs: no rows are left after step 3: there is nothing to do") == 1
    assert said.count("train.max_steps: 2 steps are made, got 2: there is nothing to do") == 1
    for limit in ("epochs", "max_steps"):
        assert losses(tmp_path / f"{limit}_again") == losses(tmp_path / f"{limit}_once")


def states(folder: Path, world_size: int, overrides: list[str], **steps: int) -> dict[str, Any]:
    """Make some of the hand-made steps; the same on every rank, weights and optimizer whole."""
    ranks = run_on_ranks(
        f"{WORKERS}:update", world_size, 120,
        folder=str(folder), config_file=CONFIG, overrides=overrides, **steps,
    )  # fmt: skip
    assert all(rank == ranks[0] for rank in ranks)
    return {name: np.array(values) for name, values in ranks[0].items()}


def distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def test_ranks_and_accumulation_are_the_same_thing(demo: Path, tmp_path: Path) -> None:
    overrides = [*with_data(demo, demo / "data/train"), "data.validation=null"]
    normalizations = ("answer", "token")
    changes = []
    for world_size in (2, 1):
        cases = [
            (str(tmp_path / f"{world_size}_{kind}"), [f"objective.normalization={kind}"])
            for kind in normalizations
        ]
        ranks = run_on_ranks(
            f"{WORKERS}:updates", world_size, 120,
            config_file=CONFIG, overrides=overrides, cases=cases,
        )  # fmt: skip
        assert all(rank == ranks[0] for rank in ranks)
        changes.append([np.array(one["after"]) - np.array(one["before"]) for one in ranks[0]])
    for two_by_two, one_by_four in zip(*changes, strict=True):
        assert np.linalg.norm(one_by_four) > 1e-2
        assert distance(two_by_two, one_by_four) < 1e-5
    assert distance(changes[0][0], changes[0][1]) > 1e-3, "the normalizations are the same"


def test_another_number_of_ranks_takes_up_the_whole_state(demo: Path, tmp_path: Path) -> None:
    overrides = [
        *with_data(demo, demo / "data/train"),
        "data.validation=null",
        "train.checkpoint_every_steps=1",
    ]
    whole = states(tmp_path / "whole", 1, overrides)
    changing = tmp_path / "changing"
    four = states(changing, 4, overrides, first=0, last=1)
    two = states(changing, 2, overrides, first=1, last=2)
    assert (changing / "checkpoints/step_1.universal").exists() is False
    one = states(changing, 1, overrides, first=2, last=3)
    assert distance(two["before"], four["after"]) < 1e-6
    assert distance(one["before"], two["after"]) < 1e-6
    # The next steps say what the state alone does not: that DeepSpeed goes on from it rightly.
    assert distance(one["after"], whole["after"]) < 1e-6
    assert distance(one["after"] - whole["before"], whole["after"] - whole["before"]) < 1e-4


def check_rates(run: RunDir) -> None:
    """Check that the rate of a run on changing ranks falls without a jump, to `final_lr`."""
    rates = [float(row["lr"]) for row in read_metrics(run.metrics) if row["loss"]]
    assert rates[:2] == [1.5e-3, 3e-3]
    falling = rates[1:]
    assert falling == sorted(falling, reverse=True)
    assert len(set(falling)) == len(falling)
    assert rates[-1] == 3e-4
    # No step takes more than a few times what an even way down would take.
    steepest = max(high - low for high, low in pairwise(falling))
    assert steepest < 4 * 2.7e-3 / len(falling)


def test_one_and_two_ranks_in_turn_end_at_the_final_rate(demo: Path, tmp_path: Path) -> None:
    """48 rows: 6 steps of 8 on two ranks, 12 of 4 on one; the rate falls over the last half."""
    train = write_shards(tmp_path / "shards", [24, 24])
    overrides = [*with_data(demo, train), "train.epochs=2", "train.max_steps=null"]
    overrides += ["data.validation=null", "optim.schedule=warmup_constant_decay"]
    overrides += ["optim.decay_fraction=0.5", "optim.lr=1.0e-3", "optim.final_lr=1.0e-4"]
    expected = {
        # 6 steps, and 12 of 4 rows each for the second epoch.
        (2, 1): [5e-4, *[1e-3] * 5, *(1e-3 - 9e-4 * n / 12 for n in range(1, 13))],
        (1, 2): [5e-4, *[1e-3] * 11, *(1e-3 - 9e-4 * n / 6 for n in range(1, 7))],
    }
    for (before, after), rates in expected.items():
        run = tmp_path / f"{before}_{after}"
        # It is told to stop at the agreement that ends the first epoch.
        for world_size, stop_at in ((before, 7 if before == 2 else 13), (after, 0)):
            run_on_ranks(
                f"{WORKERS}:trained_rows", world_size, 150,
                folder=str(run), config_file=CONFIG, overrides=overrides, stop_at=stop_at,
            )  # fmt: skip
        rows = [row for row in read_metrics(RunDir(run).metrics) if row["loss"]]
        assert [float(row["lr"]) for row in rows] == pytest.approx(rates)
        assert float(rows[-1]["lr"]) == 1e-4


def test_what_changed_in_the_optimizer_is_applied_on_any_ranks(demo: Path, tmp_path: Path) -> None:
    overrides = [*with_data(demo, demo / "data/train"), "data.validation=null"]
    values = ([0.8, 0.9, 1e-7, 0.3], [0.7, 0.85, 1e-6, 0.2], [0.6, 0.75, 1e-5, 0.0])
    changes = [
        [
            f"optim.betas=[{beta1}, {beta2}]",
            f"optim.eps={eps}",
            f"optim.weight_decay={decay}",
            f"train.max_steps={step}",
        ]
        for step, (beta1, beta2, eps, decay) in enumerate(values, start=1)
    ]
    # New, on the same ranks, and on others.
    found = []
    for world_size, some in ((2, changes[:2]), (1, changes[2:])):
        ranks = run_on_ranks(
            f"{WORKERS}:optimizer_settings", world_size, 150,
            folder=str(tmp_path), config_file=CONFIG,
            runs=[[*overrides, *each] for each in some],
        )  # fmt: skip
        assert all(rank == ranks[0] for rank in ranks)
        found += ranks[0]
    rates = [1.5e-3, 3e-3, 3e-4]
    for settings, rate, (beta1, beta2, eps, decay) in zip(found, rates, values, strict=True):
        assert [group["betas"] for group in settings] == [[beta1, beta2]] * 2
        assert [group["eps"] for group in settings] == [eps] * 2
        assert [group["weight_decay"] for group in settings] == [decay, 0.0]
        assert [group["lr"] for group in settings] == [rate] * 2


def test_four_two_three_ranks_train_every_row_once_per_epoch(demo: Path, tmp_path: Path) -> None:
    sizes = [23, 5, 31, 0, 17]
    train = write_shards(tmp_path / "shards", sizes)
    overrides = [*with_data(demo, train), "train.epochs=2", "train.max_steps=null"]
    packed = ["data.batching=packed", "data.max_tokens=64", "data.end=2"]
    one_row = ["train.micro_batch_size=1", "data.validation=null"]
    seen: Counter[tuple[Any, ...]] = Counter()
    for world_size, stop_at in ((4, 3), (2, 4), (3, 0)):
        ranks = run_on_ranks(
            f"{WORKERS}:trained_rows", world_size, 150,
            folder=str(tmp_path / "run"), config_file=CONFIG,
            overrides=[*overrides, *packed, *one_row], stop_at=stop_at,
        )  # fmt: skip
        assert any(ranks), "nothing was trained"
        seen.update(tuple(row) for rows in ranks for row in rows)
    assert set(seen) == {
        (epoch, f"shard_{shard}.jsonl", line)
        for epoch in (0, 1)
        for shard, size in enumerate(sizes)
        for line in range(1, size + 1)
    }
    assert set(seen.values()) == {1}
    check_rates(RunDir(tmp_path / "run"))


def test_a_mixture_keeps_its_shares_on_another_number_of_ranks(demo: Path, tmp_path: Path) -> None:
    sources = {
        "chat": ([50] * 4, 0.7, 2),
        "code": ([30, 9, 21, 40], 0.2, 2),
        "math": ([9] * 4, 0.1, 3),
    }
    train = {
        name: {
            "path": str(write_shards(tmp_path / name, sizes)),
            "weight": weight,
            "epochs": epochs,
        }
        for name, (sizes, weight, epochs) in sources.items()
    }
    overrides = [*with_data(demo, tmp_path), f"data.train={json.dumps(train)}"]
    overrides += ["train.max_steps=null", "data.validation=null"]
    seen: Counter[tuple[Any, ...]] = Counter()
    for world_size, stop_at in ((4, 12), (2, 0)):
        ranks = run_on_ranks(
            f"{WORKERS}:trained_rows", world_size, 150,
            folder=str(tmp_path / "run"), config_file=CONFIG, overrides=overrides, stop_at=stop_at,
        )  # fmt: skip
        seen.update(tuple(row) for rows in ranks for row in rows)
    assert set(seen.values()) == {1}
    assert set(seen) == {
        (epoch, f"{name}/shard_{shard}.jsonl", line)
        for name, (sizes, _, epochs) in sources.items()
        for epoch in range(epochs)
        for shard, size in enumerate(sizes)
        for line in range(1, size + 1)
    }
    check_rates(RunDir(tmp_path / "run"))
    metrics = [row for row in read_metrics(RunDir(tmp_path / "run").metrics) if row["loss"]]
    examples = [float(row["examples"]) for row in metrics]
    # The first source that is through ends the shares; it is the only one with so few rows left.
    shares = {name: [float(row[f"share_{name}"]) for row in metrics] for name in sources}
    together = range(next(i for i, share in enumerate(shares["chat"]) if share == 0))
    num_examples = sum(examples[i] for i in together)
    assert num_examples > 500
    for name, (_, weight, _) in sources.items():
        realised = sum(examples[i] * shares[name][i] for i in together) / num_examples
        assert abs(realised - weight) < 0.01


def test_a_changed_file_begins_its_epoch_anew(demo: Path, tmp_path: Path) -> None:
    train = write_shards(tmp_path / "shards", [9, 20, 20, 9])
    overrides = [*with_data(demo, train), "train.epochs=1", "train.max_steps=null"]

    def trained(stop_at: int, *more: str) -> list[list[tuple[Any, ...]]]:
        ranks = run_on_ranks(
            f"{WORKERS}:trained_rows", 2, 150,
            folder=str(tmp_path / "run"), config_file=CONFIG,
            overrides=[*overrides, "data.validation=null", *more], stop_at=stop_at,
        )  # fmt: skip
        return [[tuple(row) for row in rows] for rows in ranks]

    before = trained(4)
    # Of rank 1, and fewer rows than were trained of it.
    write_shards(tmp_path / "other", [9, 3])
    (tmp_path / "other/shard_1.jsonl").replace(train / "shard_1.jsonl")
    (train / "shard_2.jsonl").unlink()
    (tmp_path / "other/shard_0.jsonl").replace(train / "shard_9.jsonl")
    after = trained(0, "data.on_changed_file=restart_file")
    seen = Counter(
        row for rows in before for row in rows if row[1] in ("shard_0.jsonl", "shard_3.jsonl")
    )
    seen.update(row for rows in after for row in rows)
    expected = {"shard_0.jsonl": 9, "shard_1.jsonl": 3, "shard_3.jsonl": 9}
    assert seen == Counter(
        (0, name, line) for name, size in expected.items() for line in range(1, size + 1)
    )
    assert {row[1] for row in before[1]} == {"shard_1.jsonl", "shard_3.jsonl"}


@pytest.mark.parametrize("prefetch_steps", [0, 2])
def test_every_row_is_delivered_once_per_epoch(
    demo: Path, tmp_path: Path, prefetch_steps: int
) -> None:
    sizes = [5, 0, 17, 3, 23]
    train = write_shards(tmp_path / "shards", sizes)
    overrides = [*with_data(demo, train), "train.epochs=2", f"data.prefetch_steps={prefetch_steps}"]
    ranks = run_on_ranks(
        f"{WORKERS}:delivered", 3, 120,
        folder=str(tmp_path), config_file=CONFIG, overrides=overrides,
    )  # fmt: skip
    assert len({len(steps) for steps in ranks}) == 1, "ranks made different numbers of steps"
    for steps in zip(*ranks, strict=True):
        epochs, counts, rows = zip(*steps, strict=True)
        assert len(set(epochs)) == 1
        assert set(counts) == {sum(map(len, rows))}
    expected = {
        (f"shard_{s}.jsonl", 1 + row) for s, size in enumerate(sizes) for row in range(size)
    }
    for epoch in (0, 1):
        seen = Counter(
            tuple(row) for steps in ranks for at, _, rows in steps if at == epoch for row in rows
        )
        assert set(seen) == expected
        assert set(seen.values()) == {1}


def test_a_bad_row_of_one_rank_stops_all(demo: Path, tmp_path: Path) -> None:
    train = write_shards(tmp_path / "shards", [20, 20])
    broken = train / "shard_1.jsonl"
    broken.write_text(broken.read_text() + '{"prompt": "reverse ab"\n')
    ranks = run_on_ranks(
        f"{WORKERS}:delivered", 2, 120,
        folder=str(tmp_path), config_file=CONFIG, overrides=with_data(demo, train),
    )  # fmt: skip
    assert ranks[0] == [["error", "PeerFailedError", "1 other rank(s) stopped; see their lines"]]
    ((_, kind, message),) = ranks[1]
    assert kind == "DataError"
    place = "shard_1.jsonl:21 (byte 957)"
    assert message.endswith(f"{place}: not JSON: unexpected end of data; {REMEDY}")


def test_the_first_rank_tells_the_format_for_all(demo: Path, tmp_path: Path) -> None:
    """Rank 1 has a shard of another format, which it would take for the right one by itself."""
    train = write_shards(tmp_path / "shards", [20, 0])
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (train / "shard_1.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    ranks = run_on_ranks(
        f"{WORKERS}:delivered", 2, 120,
        folder=str(tmp_path), config_file=CONFIG, overrides=with_data(demo, train),
    )  # fmt: skip
    assert ranks[0] == [["error", "PeerFailedError", "1 other rank(s) stopped; see their lines"]]
    assert ranks[1] == [
        [
            "error",
            "DataError",
            f"{train}/shard_1.jsonl:1 (byte 0): not prompt_response: no 'prompt', 'response'; "
            "its fields are 'messages'; it is messages: one run reads one format, "
            f"or data.format: raw; {REMEDY}",
        ]
    ]


def test_bad_rows_are_counted_and_quarantined(demo: Path, tmp_path: Path) -> None:
    train = write_shards(tmp_path / "shards", [21, 9])
    for shard, bad in ((0, '{"prompt": 5, "response": "a"}\n'), (1, "{\n")):
        path = train / f"shard_{shard}.jsonl"
        path.write_text(bad + path.read_text())
    run = RunDir(tmp_path)
    run_on_ranks(
        f"{WORKERS}:train_each", 2, 120, config_file=CONFIG,
        runs=[(str(tmp_path), [
            *with_data(demo, train),
            "data.max_bad_fraction=0.1",
            "data.prefetch_steps=2",
            "data.end=1",
            "train.epochs=2",
            "train.max_steps=null",
        ])],
    )  # fmt: skip
    rows = [row for row in read_metrics(run.metrics) if row["loss"]]
    # 22 and 10 rows at 4 good ones a step; all are read before the last step of an epoch.
    assert [row["epoch"] for row in rows] == ["0"] * 6 + ["1"] * 6
    for epoch in (rows[:6], rows[6:]):
        assert sum(int(row["rows"]) for row in epoch) == 32
        assert sum(int(row["bad_rows"]) for row in epoch) == 2
        assert [float(row["epoch_progress"]) for row in epoch][-1] == 1.0
        progress = [float(row["epoch_progress"]) for row in epoch]
        assert progress == sorted(set(progress))
    for row in rows:
        assert 0 < int(row["tokens"]) < int(row["all_tokens"])
        assert float(row["fill"]) == int(row["tokens"]) / int(row["all_tokens"])
        assert 0 <= float(row["data_wait"]) <= 1
        assert 0.5 <= float(row["balance"]) <= 1
        assert float(row["all_tokens_per_s"]) > float(row["tokens_per_s"])
        assert float(row["resident_gb"]) > 0.1
        # Not known of a CPU.
        assert (row["mfu"], row["gpu_gb"]) == ("", "")
    found = [json.loads(run.rank_quarantine(rank).read_text()) for rank in (0, 1)]
    assert [(one["file"], one["line"], one["reason"]) for one in found] == [
        (str(train / "shard_0.jsonl"), 1, "bad_record"),
        (str(train / "shard_1.jsonl"), 1, "not_json"),
    ]


def test_a_profile_of_two_steps_is_written(demo: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run_on_ranks(
        f"{WORKERS}:train_each", 1, 120, config_file=CONFIG,
        runs=[(str(tmp_path), [
            *with_data(demo, write_shards(tmp_path / "shards", [12])),
            "data.validation=null",
            "train.max_steps=4",
            "train.profile=[2, 3]",
        ])],
    )  # fmt: skip
    (trace,) = run.profile.iterdir()
    assert trace.name == "rank_0_steps_2_to_3.json"
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    # Forward and backward.
    assert {"aten::mm", "AddBackward0"} <= names


def test_bf16_sums_and_reduces_gradients_in_fp32(demo: Path, tmp_path: Path) -> None:
    bf16 = ["train.precision=bf16", "train.max_steps=2", "data.validation=null"]
    ranks = run_on_ranks(
        f"{WORKERS}:gradient_dtypes", 2, 120,
        folder=str(tmp_path), config_file=CONFIG,
        overrides=[*with_data(demo, demo / "data/train"), *bf16],
    )  # fmt: skip
    assert ranks[0] == {
        "weights": ["torch.bfloat16"],
        "summed": ["torch.float32"],
        "reduced": ["torch.float32"],
    }
    assert len(losses(tmp_path)) == 2
