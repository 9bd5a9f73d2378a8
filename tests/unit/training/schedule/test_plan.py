"""The learning rate of every step, on any ranks and after any change, against tables by hand.

The ranks are threads, the rows and the steps are real: `StepDataset` and `StepFeed`.
"""

import json
from collections.abc import Mapping, Sequence
from math import cos, pi
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from llada_sft.config.schema import Config
from llada_sft.config.sections.data import DataConfig
from llada_sft.data.examples.tokenizer import TokenIds
from llada_sft.data.rows.position import Positions
from llada_sft.data.sources import list_sources
from llada_sft.data.steps.local_step import StepSize
from llada_sft.data.steps.yields import SAMPLE_ROWS, RowYield
from llada_sft.placement import Placement
from llada_sft.training.checkpoint.data_state import DataState
from llada_sft.training.checkpoint.resume import Resume
from llada_sft.training.consensus import Consensus
from llada_sft.training.feed import StepFeed
from llada_sft.training.noising import StepBatch
from llada_sft.training.schedule.build import build_schedule
from llada_sft.training.schedule.plan import Basis, Planned, Schedule
from tests.unit.data.stepping import WholePositions
from tests.unit.training.ranks import on_ranks
from tests.unit.training.steps import source

pytestmark = pytest.mark.usefixtures("own_cache_and_no_tokenizer")
IDS = TokenIds(vocab_size=1000, eos_token_id=9, mask_token_id=8)
# Each row says how many examples it makes, of how many tokens each, EOS among them.
HOOK = """
def process_data(record, tokenizer, max_length):
    ids = [1] * (record["tokens"] - 1)
    return [{"input_ids": ids, "response_mask": [True] * len(ids)}] * record["examples"]
"""
# lr 1, final 0.1, the last half of the steps: numbers that are easy to follow.
OPTIM = {"lr": 1.0, "final_lr": 0.1, "warmup_steps": 2, "decay_fraction": 0.5}
COSINE = {**OPTIM, "schedule": "cosine"}
Rows = Sequence[tuple[int, int]]


class Saved(NamedTuple):
    """A checkpoint: what the last step of an attempt knew."""

    step: int
    epoch: int
    positions: Positions
    schedule: dict[str, Any]


class Attempt(NamedTuple):
    """The rates and the totals of all steps that an attempt made, its checkpoint, its lines."""

    rates: list[float]
    totals: list[int]
    saved: Saved
    lines: list[str]


def write(folder: Path, files: Sequence[Rows]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(files):
        lines = [json.dumps({"examples": e, "tokens": t}) for e, t in rows]
        (folder / f"{number}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return str(folder)


def config_of(folder: Path, train: Any, optim: Mapping[str, Any], **more: Any) -> Config:
    hook = folder / "hook.py"
    if not hook.exists():
        hook.write_text(HOOK)
    trained = {k: v for k, v in more.items() if k in ("epochs", "max_steps")}
    data = {k: v for k, v in more.items() if k not in trained}
    return Config.model_validate(
        {
            "run": {"name": "test"},
            "model": {"path": "none"},
            "data": DataConfig.model_validate(
                {"train": train, "hook": str(hook), "max_length": 50, "end": 1, **data}
            ),
            "optim": dict(optim),
            "train": {"epochs": 1, "micro_batch_size": 1, **trained},
        }
    )


def attempt(
    config: Config,
    world_size: int,
    accumulate: int,
    stop: int | None = None,
    before: Saved | None = None,
    data_changed: bool = False,
    older_ratio: float = 1.0,
) -> Attempt:
    """Make steps on so many ranks, from a checkpoint on, until `stop` steps are made."""
    train = config.train.model_copy(update={"accumulate_grad_batches": accumulate})
    config = config.model_copy(update={"train": train})
    lines: list[str] = []

    def work(rank: int, consensus: Consensus) -> list[StepBatch]:
        sources = [one.of_rank(rank, world_size) for one in list_sources(config.data, train.epochs)]
        dataset = WholePositions(
            config.data,
            Path("none"),
            IDS,
            sources,
            3,
            StepSize(1, accumulate),
            epoch=before.epoch if before else 0,
            positions=before.positions if before else None,
        )
        basis = Basis.of(config, dataset.sources, world_size)
        kept = None if before is None else Planned.from_json(before.schedule)
        dataset.know_yields(
            None if kept is None else kept.yields_for(basis, rank, data_changed), SAMPLE_ROWS
        )
        step = before.step if before else 0
        say = lines.append if rank == 0 else lambda line: None
        schedule = Schedule(config.optim, basis, step, kept, data_changed, say, older_ratio)
        feed = StepFeed(
            dataset, source(rank, world_size), consensus, lambda: False, step, schedule=schedule
        )
        batches = []
        for batch in feed:
            if step + len(batches) == (stop or train.max_steps):
                break
            batches.append(batch)
        return batches

    ranks = on_ranks(world_size, work)
    for failed in ranks:
        if isinstance(failed, Exception):
            raise failed
    every = [[batch.pace for batch in rank] for rank in ranks]
    assert all(rank == every[0] for rank in every), "the ranks differ"
    last = [rank[-1] for rank in ranks]
    positions = {name: at for batch in last for name, at in batch.positions.items()}
    if before:
        positions = {**before.positions, **positions}
    pace = last[0].pace
    planned = Planned(
        pace.planned.point,
        pace.planned.steps_left,
        pace.planned.basis,
        [batch.yields for batch in last],
    )
    step = (before.step if before else 0) + len(every[0])
    schedule = json.loads(json.dumps(planned.to_json()))
    return Attempt(
        [one.rate for one in every[0]],
        [one.total_steps for one in every[0]],
        Saved(step, last[0].epoch, positions, schedule),
        lines,
    )


def steps_left(
    saved: Saved, sources: Mapping[str, tuple[int, int]], world_size: int, accumulate: int
) -> int:
    """Count by hand, from the positions, what the busiest rank has left of one epoch or mixture.

    Args:
        saved: The checkpoint.
        sources: By name, the rows of each file, and epochs.
        world_size: Ranks that the files are shared out to.
        accumulate: Examples of a step of each; a row is one.
    """
    rows = [0] * world_size
    for name, (num_rows, epochs) in sources.items():
        files = sorted(file for file in saved.positions if ("/" in file) == bool(name))
        own = [file for file in files if file.startswith(f"{name}/" if name else "")]
        for number, file in enumerate(own):
            at = saved.positions[file]
            rows[number % world_size] += num_rows * (epochs - at.epoch) - at.row
    return max(-(-count // accumulate) for count in rows)


def falling(first: float, steps: int, last: float = 0.1) -> list[float]:
    """Steps of equal size from a rate, which is not among them, to the last one."""
    return [first + (last - first) * (n + 1) / steps for n in range(steps)]


@pytest.fixture
def padded(tmp_path: Path) -> Config:
    """Two epochs of six files of eight rows each, one example a row: 96 in all."""
    return config_of(tmp_path, write(tmp_path / "data", [[(1, 5)] * 8] * 6), OPTIM, epochs=2)


# -- unchanged ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("world_size", "accumulate", "total"), [(1, 4, 24), (2, 2, 24), (3, 2, 16), (3, 1, 32)]
)
def test_the_whole_training(padded: Config, world_size: int, accumulate: int, total: int) -> None:
    whole = attempt(padded, world_size, accumulate)
    half = total // 2
    assert whole.totals == [total] * total
    assert whole.rates == pytest.approx([0.5, 1.0, *[1.0] * (half - 2), *falling(1.0, half)])
    assert whole.rates[-1] == 0.1
    assert whole.lines == []


@pytest.mark.parametrize("stop", [1, 5, 11, 12, 13, 15])
def test_the_same_ranks_go_on_to_the_last_digit(padded: Config, stop: int) -> None:
    whole = attempt(padded, 3, 2)
    first = attempt(padded, 3, 2, stop)
    second = attempt(padded, 3, 2, before=first.saved)
    assert first.rates + second.rates == whole.rates
    assert second.saved.schedule == whole.saved.schedule
    assert first.lines == second.lines == []


def test_a_rank_that_is_short_of_rows_is_waited_for(tmp_path: Path) -> None:
    """21 and 9 rows at 2 a rank and step: 11 steps an epoch, of which one rank makes 5."""
    config = config_of(
        tmp_path, write(tmp_path / "data", [[(1, 5)] * 21, [(1, 5)] * 9]), OPTIM, epochs=2
    )
    whole = attempt(config, 2, 2)
    assert whole.totals == [22] * 22
    assert whole.rates == pytest.approx([0.5, *[1.0] * 10, *falling(1.0, 11)])


# -- other ranks, another batch -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranks", "accumulate", "steps_left"),
    [
        # Of 96 examples 48 are done, at 6 a step: 8 of 16 steps.
        ((3, 2), (3, 1), 16),
        ((3, 2), (3, 4), 4),
        ((3, 2), (2, 3), 8),
        ((3, 2), (2, 2), 12),
        ((3, 2), (1, 2), 24),
        ((3, 2), (1, 12), 4),
        # 48 of 96, at 2 a step, and at 1.
        ((2, 1), (1, 1), 48),
        ((1, 1), (2, 1), 24),
        ((1, 2), (2, 2), 12),
        ((1, 2), (3, 2), 8),
    ],
)
def test_half_the_rows_are_done_on_other_ranks(
    padded: Config, ranks: tuple[int, int], accumulate: tuple[int, int], steps_left: int
) -> None:
    """The first epoch here, the second one there: the rate falls over all of the second."""
    made = 48 // (ranks[0] * ranks[1])
    first = attempt(padded, *ranks, stop=made)
    second = attempt(padded, *accumulate, before=first.saved)
    assert first.rates == pytest.approx([0.5, *[1.0] * (made - 1)])
    assert second.rates == pytest.approx(falling(1.0, steps_left))
    assert second.rates[-1] == 0.1
    assert second.totals == [made + steps_left] * steps_left


def test_two_ranks_become_one_in_the_middle_of_the_fall(padded: Config) -> None:
    first = attempt(padded, 2, 2, stop=18)
    second = attempt(padded, 1, 2, before=first.saved)
    # 24 steps: half of the last 12 are made, and the 24 rows left make 12.
    assert first.rates == pytest.approx([0.5, *[1.0] * 11, *falling(1.0, 12)[:6]])
    assert second.rates == pytest.approx(falling(0.55, 12))
    assert second.lines == [
        "schedule: global batch 4 examples -> 2 examples: 30 steps in all, 12 of them left"
        " (before: 24); the learning rate of step 19 is 0.5125 (before: 0.475)"
    ]
    # And back, after 4 of these steps: 16 rows are left, 9 of them on one rank.
    saved = attempt(padded, 1, 2, 22, first.saved).saved
    assert steps_left(saved, {"": (8, 2)}, 2, 2) == 5
    third = attempt(padded, 2, 2, before=saved)
    assert third.rates == pytest.approx(falling(0.55 - 0.45 / 3, 5))


@pytest.mark.parametrize("stop", [3, 9, 20])
def test_a_cosine_does_not_jump(tmp_path: Path, stop: int) -> None:
    config = config_of(tmp_path, write(tmp_path / "data", [[(1, 5)] * 24] * 4), COSINE)
    first = attempt(config, 2, 2, stop)
    second = attempt(config, 4, 2, before=first.saved)
    # 24 steps, 2 of them warm-up: the way is 22 steps; the rest of it is shared by those left.
    done = (stop - 2) / 22
    left = steps_left(first.saved, {"": (24, 1)}, 4, 2)
    assert (24 - stop) // 2 <= left <= (24 - stop) // 2 + 2
    ways = [done + (1 - done) * (n + 1) / left for n in range(left)]
    assert first.rates[2:] == pytest.approx(
        [0.1 + 0.45 * (1 + cos(pi * (n + 1) / 22)) for n in range(stop - 2)]
    )
    assert second.rates == pytest.approx([0.1 + 0.45 * (1 + cos(pi * way)) for way in ways])
    assert second.rates[-1] == 0.1


def test_the_same_batch_on_other_ranks_is_the_same_schedule(padded: Config) -> None:
    whole = attempt(padded, 3, 2)
    first = attempt(padded, 3, 2, stop=8)
    second = attempt(padded, 2, 3, before=first.saved)
    third = attempt(padded, 1, 6, before=attempt(padded, 2, 3, 11, first.saved).saved)
    assert first.rates + second.rates == pytest.approx(whole.rates)
    assert third.rates == pytest.approx(whole.rates[11:])
    assert second.lines == [
        "schedule: 3 -> 2 ranks, the same global batch of 6 examples: 16 steps in all, 8 of them"
        " left (before: 16); the learning rate of step 9 is 0.8875 (before: 0.8875)"
    ]


# -- mixtures, packed, hooks ----------------------------------------------------------------------


def mixture(folder: Path, **more: Any) -> Config:
    """Two passes over 24 rows and three over 16: 96 examples of five tokens."""
    sources = {
        name: {
            "path": write(folder / name, [[(1, 5)] * rows] * 4),
            "weight": weight,
            "epochs": epochs,
        }
        for name, rows, weight, epochs in (("a", 6, 1.0, 2), ("b", 4, 3.0, 3))
    }
    return config_of(folder, sources, OPTIM, **more)


@pytest.mark.parametrize(
    ("then", "left"), [((2, 2), 12), ((1, 2), 24), ((2, 4), 6), ((1, 3), 16), ((4, 1), 13)]
)
def test_a_mixture(tmp_path: Path, then: tuple[int, int], left: int) -> None:
    config = mixture(tmp_path)
    first = attempt(config, 2, 2, stop=12)
    second = attempt(config, *then, before=first.saved)
    assert first.totals == [24] * 12
    assert first.rates == pytest.approx([0.5, *[1.0] * 11])
    # Of four ranks, one has more rows left in its files than the others.
    assert steps_left(first.saved, {"a": (6, 2), "b": (4, 3)}, *then) == left
    assert second.rates == pytest.approx(falling(1.0, left))


@pytest.mark.parametrize("name", ["one dataset", "mixture"])
@pytest.mark.parametrize(
    ("then", "steps_left"), [((2, 1), 12), ((1, 1), 24), ((1, 2), 12), ((2, 2), 6)]
)
def test_packed(tmp_path: Path, name: str, then: tuple[int, int], steps_left: int) -> None:
    """Micro-batches of 10 tokens hold two examples: 48 of them."""
    packed = {"batching": "packed", "max_tokens": 10, "max_length": 10, "pack_buffer": 3}
    if name == "mixture":
        config = mixture(tmp_path, **packed)
    else:
        train = write(tmp_path / "data", [[(1, 5)] * 12] * 4)
        config = config_of(tmp_path, train, OPTIM, epochs=2, **packed)
    first = attempt(config, 2, 1, stop=12)
    second = attempt(config, *then, before=first.saved)
    assert first.totals == [24] * 12
    assert first.rates == pytest.approx([0.5, *[1.0] * 11])
    assert second.rates == pytest.approx(falling(1.0, steps_left))
    assert second.rates[-1] == 0.1
    assert first.lines == [
        "schedule: about 24 steps in all, 24 of them left; estimated from a sample of the rows"
    ]


def test_rows_that_do_not_fill_their_packs(tmp_path: Path) -> None:
    """Packs of 10 tokens hold two examples of 4: more steps than the tokens say."""
    packed = {"batching": "packed", "max_tokens": 10, "max_length": 10, "pack_buffer": 3}
    config = config_of(tmp_path, write(tmp_path / "data", [[(1, 4)] * 50]), OPTIM, **packed)
    whole = attempt(config, 1, 1)
    assert len(whole.rates) == 25
    # After the first one, 48 · 4 / 10 more are estimated; and never fewer than are made.
    assert whole.totals[0] == 1 + 20
    assert whole.totals == sorted(whole.totals)
    assert whole.totals[-1] == 25
    assert whole.rates[:2] == [0.5, 1.0]
    assert whole.rates == [0.5, *sorted(whole.rates[1:], reverse=True)]
    # A resume goes on from the checkpoint's schedule, not from a new and better one.
    first = attempt(config, 1, 1, stop=9)
    second = attempt(config, 1, 1, before=first.saved)
    assert first.rates + second.rates == whole.rates
    assert second.saved.schedule == whole.saved.schedule
    # It falls over half of the rows, not of the estimate.
    assert sum(rate < 1 for rate in whole.rates[1:]) in (12, 13, 14)
    assert whole.rates[-1] == 0.1


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_hook_that_makes_three_examples_of_each_row(tmp_path: Path, world_size: int) -> None:
    config = config_of(tmp_path, write(tmp_path / "data", [[(3, 5)] * 16] * 2), OPTIM)
    whole = attempt(config, world_size, 2)
    total = 48 // world_size
    assert whole.totals == [total] * total
    half = total // 2
    assert whole.rates == pytest.approx([0.5, *[1.0] * (half - 1), *falling(1.0, half)])
    first = attempt(config, world_size, 2, stop=7)
    again = attempt(config, world_size, 2, before=first.saved)
    assert first.rates + again.rates == whole.rates


def test_a_hook_that_leaves_rows_out(tmp_path: Path) -> None:
    """Two of three rows make no example, and one of 20 is skipped for its length."""
    rows = [(0, 5), (1, 5), (0, 5)] * 20
    config = config_of(
        tmp_path, write(tmp_path / "data", [rows, rows]), OPTIM, on_too_long="skip", epochs=2
    )
    whole = attempt(config, 2, 2)
    assert len(whole.rates) == 20
    assert all(18 <= total <= 22 for total in whole.totals)
    assert whole.totals[-1] == 20
    assert whole.rates[:2] == [0.5, 1.0]
    assert whole.rates[1:] == sorted(whole.rates[1:], reverse=True)
    assert 8 <= sum(rate < 1 for rate in whole.rates[1:]) <= 12
    assert whole.rates[-1] == 0.1


@pytest.mark.parametrize(
    "assumed", [RowYield(1, 1, 5), RowYield(1, 9, 45), RowYield(100, 1, 5), RowYield(7, 22, 90)]
)
@pytest.mark.parametrize("optim", [OPTIM, COSINE, {**OPTIM, "decay_fraction": 0.1}])
def test_a_wrong_estimate_ends_at_the_last_row_all_the_same(
    tmp_path: Path, assumed: RowYield, optim: dict[str, Any]
) -> None:
    """Rows make three examples; the checkpoint of the first step says something else."""
    config = config_of(tmp_path, write(tmp_path / "data", [[(3, 5)] * 10] * 2), optim, epochs=3)
    first = attempt(config, 2, 2, stop=1)
    schedule = {**first.saved.schedule, "yields": [[assumed]] * 2}
    second = attempt(config, 2, 2, before=first.saved._replace(schedule=schedule))
    rates = second.rates
    assert first.saved.step + len(rates) == 45
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.1)
    assert min(rates) == rates[-1]
    assert second.totals[-1] == 45
    assert all(total >= step + 2 for step, total in enumerate(second.totals))


# -- max_steps, epochs ----------------------------------------------------------------------------


def test_max_steps_ends_the_schedule(tmp_path: Path, padded: Config) -> None:
    limited = config_of(tmp_path, padded.data.train, OPTIM, epochs=2, max_steps=10)
    whole = attempt(limited, 2, 2)
    assert whole.totals == [10] * 10
    assert whole.rates == pytest.approx([0.5, *[1.0] * 4, *falling(1.0, 5)])
    # Rows may end before.
    far = config_of(tmp_path, padded.data.train, OPTIM, epochs=2, max_steps=100)
    assert attempt(far, 2, 2).rates == attempt(padded, 2, 2).rates
    # Steps count, also on other ranks: half of them are made.
    first = attempt(limited, 2, 2, stop=5)
    second = attempt(limited, 1, 2, before=first.saved)
    assert second.rates == pytest.approx(falling(1.0, 5))


@pytest.mark.parametrize(("stop", "before", "after"), [(6, 12, 20), (12, 12, 20), (6, 20, 12)])
def test_max_steps_raised_or_lowered_is_as_if_it_had_always_been_so(
    tmp_path: Path, padded: Config, stop: int, before: int, after: int
) -> None:
    train = padded.data.train
    first = attempt(config_of(tmp_path, train, COSINE, epochs=2, max_steps=before), 2, 2, stop)
    changed = config_of(tmp_path, train, COSINE, epochs=2, max_steps=after)
    second = attempt(changed, 2, 2, before=first.saved)
    whole = attempt(changed, 2, 2)
    assert second.rates == pytest.approx(whole.rates[stop:])
    assert second.totals == [after] * (after - stop)
    rate, was = (
        whole.rates[stop],
        attempt(config_of(tmp_path, train, COSINE, epochs=2, max_steps=before), 2, 2).rates,
    )
    old = was[stop] if stop < before else 0.1
    assert second.lines == [
        f"schedule: train.max_steps {before} -> {after}: {after} steps in all, {after - stop} of"
        f" them left (before: {before}); the learning rate of step {stop + 1} is {rate:.4g}"
        f" (before: {old:.4g})"
    ]


def test_more_epochs_are_as_if_there_had_always_been_so_many(
    tmp_path: Path, padded: Config
) -> None:
    train = padded.data.train
    one = attempt(config_of(tmp_path, train, OPTIM, epochs=1), 2, 2)
    three = config_of(tmp_path, train, OPTIM, epochs=3)
    whole = attempt(three, 2, 2)
    assert one.saved.step == 12
    second = attempt(three, 2, 2, before=one.saved._replace(epoch=0))
    assert second.rates == pytest.approx(whole.rates[12:])
    assert second.lines[0].startswith("schedule: train.epochs 1 -> 3: 36 steps in all, 24 of them")


def test_more_epochs_on_half_the_batch(tmp_path: Path, padded: Config) -> None:
    """12 steps of 4 are 24 of 2: of 72 the second half falls."""
    train = padded.data.train
    one = attempt(config_of(tmp_path, train, OPTIM, epochs=2), 2, 2, stop=12)
    second = attempt(config_of(tmp_path, train, OPTIM, epochs=3), 2, 1, before=one.saved)
    assert second.rates == pytest.approx([*[1.0] * 12, *falling(1.0, 36)])


# -- what is kept ---------------------------------------------------------------------------------


def test_a_checkpoint_of_an_older_version_is_planned_anew(padded: Config) -> None:
    whole = attempt(padded, 2, 2)
    first = attempt(padded, 2, 2, stop=15)
    second = attempt(padded, 2, 2, before=first.saved._replace(schedule={}))
    assert second.rates == pytest.approx(whole.rates[15:])
    assert second.lines == [
        "schedule: the checkpoint is of an older version and has none: 24 steps in all,"
        " 9 of them left"
    ]


def test_a_checkpoint_of_an_older_version_on_other_ranks(padded: Config) -> None:
    """12 of 24 steps on two ranks are 24 of 48 on one: the rate falls over what is left."""
    older = attempt(padded, 2, 2, stop=12).saved._replace(schedule={})
    second = attempt(padded, 1, 2, before=older, older_ratio=2.0)
    assert second.rates == pytest.approx(falling(1.0, 24))


def test_a_sample_is_drawn_again_only_where_rows_may_make_something_else(padded: Config) -> None:
    first = attempt(padded, 2, 2, stop=3)
    planned = Planned.from_json(first.saved.schedule)
    assert planned is not None
    basis = planned.basis
    assert planned.yields == [[RowYield(24, 24, 120)]] * 2
    assert planned.yields_for(basis, 1, data_changed=False) == [RowYield(24, 24, 120)]
    assert planned.yields_for(basis, 1, data_changed=True) is None
    hook = Path(padded.data.hook)
    hook.write_text(hook.read_text() + "\n")
    sources = list_sources(padded.data, 2)
    assert planned.yields_for(Basis.of(padded, sources, 2), 1, data_changed=False) is None
    hook.write_text(HOOK)
    assert planned.yields_for(Basis.of(padded, sources, 1), 0, data_changed=False) is None
    longer = Basis.of(padded, list_sources(padded.data, 5), 2)
    assert planned.yields_for(longer, 0, data_changed=False) is not None


def test_all_ranks_plan_for_the_hook_that_rank_0_sees(
    padded: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = attempt(padded, 2, 2, stop=3).saved
    data = DataState(first.epoch, first.positions, dict.fromkeys(first.positions, ""))
    resume = Resume(None, 3, data, planned=Planned.from_json(first.schedule), world_size=2)
    train = padded.train.model_copy(update={"accumulate_grad_batches": 2})
    config = padded.model_copy(update={"train": train})
    known: dict[int, object] = {}

    def work(rank: int, consensus: Consensus) -> None:
        sources = [one.of_rank(rank, 2) for one in list_sources(config.data, 2)]
        dataset = WholePositions(config.data, Path("none"), IDS, sources, 3, StepSize(1, 2))
        monkeypatch.setattr(dataset, "fingerprints", lambda: {f"{n}.jsonl": "" for n in range(3)})
        monkeypatch.setattr(dataset, "know_yields", lambda it, rows: known.update({rank: it}))
        # A file system that shows a node an older text of the hook.
        hook = Path(config.data.hook) if rank == 0 else Path("another_node/hook.py")
        seen = config.model_copy(
            update={"data": config.data.model_copy(update={"hook": str(hook)})}
        )
        build_schedule(seen, dataset, resume, Placement(rank, 2, rank, 0, "", 0), consensus)

    assert on_ranks(2, work) == [None, None]
    assert known == {rank: [RowYield(24, 24, 120)] for rank in range(2)}


def test_changed_files_and_hooks_are_named(padded: Config) -> None:
    first = attempt(padded, 2, 2, stop=3)
    hook = Path(padded.data.hook)
    hook.write_text(HOOK.replace('* record["examples"]', "* 2"))
    second = attempt(padded, 2, 2, before=first.saved, data_changed=True)
    assert second.lines[0].startswith(
        "schedule: what makes examples of rows changed; files changed: about 45 steps in all"
    )
    # 42 of 48 steps are left where there were 21 of 24: the same share of the training.
    assert second.rates[:9] == [1.0] * 9
    assert second.rates[-24:] == pytest.approx(falling(1.0, 24))
