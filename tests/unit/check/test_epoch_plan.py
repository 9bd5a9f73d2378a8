"""An epoch that is planned by lengths alone is the epoch that `StepDataset` gives."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llada_sft.check.epoch_plan import PlanEpoch, RankEpoch, estimate
from llada_sft.check.reading import ReadRows, Rows, Worker, join
from llada_sft.config.sections.data import DataConfig, SourceConfig
from llada_sft.data.examples.tokenizer import TokenIds
from llada_sft.data.records.normalize import RecordReader
from llada_sft.data.sources import NamedShard, list_sources
from llada_sft.data.steps.dataset import StepDataset
from llada_sft.data.steps.local_step import StepSize
from llada_sft.errors import DataError
from tests.unit.data.batches import examples_of

IDS = TokenIds(vocab_size=1000, eos_token_id=999, mask_token_id=5)
# A record is a list of examples [prompt tokens, response tokens, does the hook add the noise?].
HOOK = """
def process_data(record, tokenizer, max_length):
    def one(prompt, response, noisy):
        ids = [7] * (prompt + response)
        made = {"input_ids": ids, "response_mask": [False] * prompt + [True] * response}
        return made | ({"noisy_ids": ids} if noisy else {})
    return [one(*of) for of in record]
"""
SEED, EPOCHS = 3, 2
Record = list[tuple[int, int, bool]] | str


@pytest.fixture(scope="module", autouse=True)
def no_tokenizer() -> Iterator[None]:
    """The hook above needs none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llada_sft.data.examples.encode.load_tokenizer", lambda *_: None)
        yield


def write(folder: Path, files: Sequence[Sequence[Record]], **settings: Any) -> DataConfig:
    (folder / "hook.py").write_text(HOOK)
    (folder / "train").mkdir()
    for number, records in enumerate(files):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "train" / f"{number}.jsonl").write_text(text)
    return DataConfig(
        train=str(folder / "train"),
        hook=str(folder / "hook.py"),
        format="raw",
        max_length=30,
        **settings,
    )


def shards_of(config: DataConfig) -> list[NamedShard]:
    return [shard for source in list_sources(config, 1) for shard in source.shards]


def read(config: DataConfig, worker: Worker) -> dict[str, Rows]:
    """Read every file in chunks of two rows."""
    read = {}
    for file in shards_of(config):
        num_rows = worker.stream(file).num_rows
        chunks = [range(at, min(at + 2, num_rows)) for at in range(0, num_rows, 2)]
        parts = [ReadRows(file, chunk, RecordReader(), SEED)(worker) for chunk in chunks]
        read[file.name] = join([part.rows for part in parts])
    return read


def planned(config: DataConfig, size: StepSize) -> RankEpoch:
    worker = Worker(config, Path("no tokenizer"), IDS)
    return PlanEpoch(list_sources(config, EPOCHS), read(config, worker), SEED, size)(worker)


def trained(config: DataConfig, size: StepSize) -> RankEpoch:
    """Count what the training is given."""
    # Named sources make all of their epochs, otherwise it is one.
    epochs = EPOCHS if isinstance(config.train, dict) else 1
    sources = list_sources(config, epochs)
    dataset = StepDataset(config, Path("no tokenizer"), IDS, sources, SEED, size)
    steps = [step for step in dataset if not step.end_of_epoch]
    batches = [batch for step in steps for batch in step.micro_batches]
    answers = weight = 0.0
    for batch in batches:
        for example, span in zip(examples_of(batch), batch.spans, strict=True):
            length = batch.response_mask.reshape(-1)[span].sum()
            # 7 is a token of the hook's, EOS is not.
            answer = (example.input_ids[example.response_mask] == 7).sum()
            answers += answer
            weight += 1 - answer / length
    response_tokens = sum(step.num_response_tokens for step in steps)
    return RankEpoch(
        rows=dataset.num_rows * epochs,
        examples=sum(step.num_examples for step in steps),
        steps=len(steps),
        tokens=sum(step.num_tokens for step in steps),
        positions=sum(step.num_positions for step in steps),
        response_tokens=response_tokens,
        eos_tokens=response_tokens - int(answers),
        void_tokens=sum(int((batch.input_ids == 50).sum()) for batch in batches)
        * (config.end == "void"),
        eos_weight=pytest.approx(weight),
    )


RECORDS = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 20), st.booleans()), max_size=3
) | st.just("bad")
BATCHING = st.sampled_from(
    [
        {"end": "batch_max"},
        {"end": 2, "on_too_long": "skip"},
        {"batching": "packed", "max_tokens": 40, "end": 1, "pack_buffer": 3},
        {"batching": "packed", "max_tokens": 30, "end": 3, "on_too_long": "clip_prompt"},
        {"end": "void", "void_token_id": 50, "end_tokens": 9},
        {"end": "rainbow", "rainbow_token_ids": (50, 51), "batching": "packed", "max_tokens": 40},
    ]
)


@given(
    files=st.lists(st.lists(RECORDS, max_size=6), min_size=1, max_size=3),
    batching=BATCHING,
    size=st.builds(StepSize, st.integers(1, 3), st.integers(1, 2)),
    shuffle=st.booleans(),
    mixed=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_what_is_planned_is_what_is_trained(
    files: list[list[Record]],
    batching: dict[str, Any],
    size: StepSize,
    shuffle: bool,
    mixed: bool,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = write(Path(folder), files, shuffle=shuffle, max_bad_fraction=1.0, **batching)
        # How many tokens follow an answer differs between epochs; what is planned is the first.
        if mixed and config.end not in ("void", "rainbow"):
            paths = [f"{config.train}/{number}.jsonl" for number in range(len(files))]
            sources = {f"s{n}": SourceConfig(path=path) for n, path in enumerate(paths)}
            config = config.model_copy(update={"train": sources})
        assert planned(config, size) == trained(config, size)


@given(bad=st.lists(st.booleans(), min_size=1, max_size=9), limit=st.sampled_from([0.0, 0.3]))
@settings(max_examples=20, deadline=None)
def test_a_rank_that_bad_rows_would_stop_says_so(bad: list[bool], limit: float) -> None:
    records: list[Record] = ["bad" if one else [(1, 1, False)] for one in bad]
    with tempfile.TemporaryDirectory() as folder:
        config = write(Path(folder), [records], max_bad_fraction=limit)
        found = planned(config, StepSize(1, 1))
        stops = False
        try:
            trained(config, StepSize(1, 1))
        except DataError:
            stops = True
    expected = f"{sum(bad)} of its {len(bad)} rows are bad" if stops else None
    assert found.stopped_by == expected
    # The numbers are those of all good rows, whether it would get there or not.
    assert (found.rows, found.examples) == (len(bad), bad.count(False))


def test_an_estimate_of_equal_rows_is_exact(tmp_path: Path) -> None:
    records: list[Record] = [[(3, 4, False)]] * 8
    config = write(tmp_path, [records, records], end="batch_max")
    size = StepSize(2, 2)
    worker = Worker(config, Path("no tokenizer"), IDS)
    file, _ = shards_of(config)
    sample = ReadRows(file, (1, 4), RecordReader(), SEED)(worker).rows
    # The second rank has no row in the sample.
    found = estimate(config, size, [[sample], []], [8, 8])
    exact = planned_one(config, worker, size)
    assert found == [replace(exact, eos_weight=pytest.approx(exact.eos_weight))] * 2


def planned_one(config: DataConfig, worker: Worker, size: StepSize) -> RankEpoch:
    first = list_sources(config, 1)[0].of_rank(0, 2)
    return PlanEpoch([first], read(config, worker), SEED, size)(worker)


def test_of_two_ranks_the_one_with_longer_rows_has_more_to_do(tmp_path: Path) -> None:
    short: list[Record] = [[(1, 2, False)]] * 10
    long: list[Record] = [[(10, 16, False)]] * 10
    batching = {"batching": "packed", "max_tokens": 30, "end": 1}
    config = write(tmp_path, [short, long], **batching)
    worker = Worker(config, Path("no tokenizer"), IDS)
    files = shards_of(config)
    samples = [[ReadRows(file, (2, 7), RecordReader(), SEED)(worker).rows] for file in files]
    few, many = estimate(config, StepSize(1, 1), samples, [10, 10])
    assert (few.tokens, many.tokens) == (40, 270)
    assert few.steps < many.steps


def test_an_estimate_of_no_examples_is_nothing(tmp_path: Path) -> None:
    config = write(tmp_path, [[[], []]])
    worker = Worker(config, Path("no tokenizer"), IDS)
    assert estimate(config, StepSize(1, 1), [list(read(config, worker).values())], [2]) == [
        RankEpoch(rows=2)
    ]
