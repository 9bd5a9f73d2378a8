"""`data.end` on real ranks: the same loss on any number, packed or padded; resumed bit for bit."""

from pathlib import Path

import pytest

from llada_sft.demo.data import make_tokenizer
from llada_sft.run_dir import RunDir
from llada_sft.training.log.metrics_csv import read_metrics
from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_training import CONFIG, WORKERS, with_data, write_shards
from tests.distributed.training_workers import losses

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Return the overrides for each `data.end` with a tokenizer that has reserved tokens."""
    tokenizer = make_tokenizer()
    names = [f"<|reserved_token_{number}|>" for number in range(3)]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    ids = tokenizer.convert_tokens_to_ids(names)
    common = [f"model.path={folder}", "data.end_tokens=9"]
    return {
        "void": [*common, "data.end=void", f"data.void_token_id={ids[0]}"],
        "rainbow": [*common, "data.end=rainbow", f"data.rainbow_token_ids={ids}"],
    }


@pytest.mark.timeout(300)
@pytest.mark.parametrize("end", ["void", "rainbow"])
def test_the_loss_is_the_same_on_one_and_two_ranks_packed_and_padded(
    demo: Path, tmp_path: Path, ends: dict[str, list[str]], end: str
) -> None:
    """Each step has all rows, so that the same rows meet in any arrangement."""
    train = write_shards(tmp_path / "shards", [4, 4])
    overrides = [*with_data(demo, train), *ends[end], "objective.t_sampling=independent"]
    overrides += ["train.epochs=2", "train.max_steps=null", "train.validate_every_steps=1"]
    overrides += ["train.validation_max_rows=9"]
    # Rows of at most 23 tokens and 9 more: all of a rank's fit.
    packed = ["train.micro_batch_size=1", "data.batching=packed", "data.max_tokens=300"]
    packed += ["train.accumulate_grad_batches=1", "data.pack_buffer=8"]
    arrangements = {
        "one": (1, ["train.micro_batch_size=2", "train.accumulate_grad_batches=4"]),
        "two": (2, ["train.micro_batch_size=4", "train.accumulate_grad_batches=1"]),
        "packed": (1, packed),
    }
    found = {}
    for name, (world_size, batches) in arrangements.items():
        run_on_ranks(
            f"{WORKERS}:train_each", world_size, 100,
            config_file=CONFIG, runs=[(str(tmp_path / name), [*overrides, *batches])],
        )  # fmt: skip
        rows = read_metrics(RunDir(tmp_path / name).metrics)
        validation = [float(row["validation_loss"]) for row in rows if row["validation_loss"]]
        tokens = [float(row["tokens"]) for row in rows if row["loss"]]
        found[name] = [*map(float, losses(tmp_path / name).values()), *validation, *tokens]
    assert found["one"][-2] != found["one"][-1], "another number of tokens in the second epoch"
    for name in ("two", "packed"):
        assert found[name] == pytest.approx(found["one"], rel=2e-6), name


@pytest.mark.timeout(300)
def test_a_run_with_void_tokens_resumes_bit_for_bit(
    demo: Path, tmp_path: Path, ends: dict[str, list[str]]
) -> None:
    train = write_shards(tmp_path / "shards", [28, 9, 5])
    overrides = [
        *with_data(demo, train),
        *ends["void"],
        "objective.pairs=antithetic",
        "objective.t_density=importance",
        "objective.confidence_weight=0.5",
        "objective.void_weight=0.7",
        "train.micro_batch_size=1",
        "data.batching=packed",
        "data.max_tokens=128",
        "data.pack_buffer=5",
        "train.epochs=2",
        "train.max_steps=9",
        "train.checkpoint_every_steps=4",
        "train.validate_every_steps=3",
        "train.validation_max_rows=7",
    ]
    stops = [2, 6]
    results = run_on_ranks(
        f"{WORKERS}:interrupted_runs", 2, 280,
        folder=str(tmp_path), config_file=CONFIG, overrides=overrides, stops=stops,
    )  # fmt: skip
    assert results[0]["outcomes"] == ["finished", *["stopped", "finished"] * len(stops)]
    whole = losses(tmp_path / "whole")
    assert list(whole) == list(range(1, 10))
    for stop in stops:
        assert losses(tmp_path / f"stopped_{stop}") == whole, f"stopped at {stop}"
