"""The hooks of docs/hook.md, each run as it stands there, on its rows and with its config."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from llada_sft.config.record_formats import REQUIRED
from llada_sft.config.sections.data import DataConfig
from llada_sft.config.sections.objective import ObjectiveConfig
from llada_sft.data.examples.encode import Encoded, build_encoder
from llada_sft.data.examples.hook import check_hook
from llada_sft.data.examples.tokenizer import TokenIds
from llada_sft.data.records.formats import RecordRules
from llada_sft.data.records.normalize import RecordReader
from llada_sft.data.rows.row import Row
from llada_sft.data.steps.collate import pad
from llada_sft.data.steps.local_step import LocalStep
from llada_sft.training.consensus import Report
from llada_sft.training.noising import NoiseSource

DOCS = Path(__file__).parents[4] / "docs" / "hook.md"
SECTIONS = {
    part.partition("\n")[0]: part.partition("\n")[2]
    for part in DOCS.read_text(encoding="utf-8").split("\n## ")[1:]
}
BEGIN = "<|startoftext|>"
EOS, MASK = "<|endoftext|>", "<|mdm_mask|>"
HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n"
# The rows of one section in one epoch, through the real encoder.
Run = Callable[..., list[Encoded]]


def test_what_a_hook_gets_of_each_format() -> None:
    """The table: a row, and the record that it becomes."""
    table = re.findall(
        r"^\| `(\w+)` \| `(\{.*?\})` \| `(\{.*?\})` \|$", DOCS.read_text(encoding="utf-8"), re.M
    )
    assert [name for name, _, _ in table] == [*REQUIRED, "raw"]
    for name, row, record in table:
        reader = RecordReader(name, RecordRules(), "last")
        assert reader(json.loads(row), 0) == json.loads(record)


def block(section: str, language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", SECTIONS[section], re.M | re.S)
    return str(found)


def asked(text: str, system: str = "") -> str:
    def said(role: str, content: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>"

    return BEGIN + (said("system", system) if system else "") + said("user", text) + HEADER


@pytest.fixture
def run(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    def rows_of(section: str, epoch: int = 0, **keys: object) -> list[Encoded]:
        hook = tmp_path / "hook.py"
        hook.write_text(block(section, "python"))
        check_hook(hook)
        data = yaml.safe_load(block(section, "yaml"))["data"]
        config = DataConfig(**{**data, "hook": str(hook), "end": 1, "max_length": 64, **keys})
        ids = TokenIds(len(tokenizer), tokenizer.eos_token_id, tokenizer.mask_token_id)
        encode = build_encoder(config, tmp_path, ids)
        lines = block(section, "json").splitlines()
        rows = [
            Row("a.jsonl", n, 0, line.encode(), "a.jsonl") for n, line in enumerate(lines, start=1)
        ]
        return [encode(row, epoch) for row in rows]

    monkeypatch.setattr("llada_sft.data.examples.encode.load_tokenizer", lambda *_: tokenizer)
    return rows_of


def texts(encoded: Encoded, tokenizer: Any) -> list[tuple[str, str]]:
    """(what is given, what is learned) of each example."""
    found = []
    for example in encoded.examples:
        ids, learned = example.input_ids, example.response_mask
        found.append((tokenizer.decode(ids[~learned]), tokenizer.decode(ids[learned])))
    return found


def test_there_are_four() -> None:
    assert list(SECTIONS) == [
        "Step by step",
        "Filter and augment",
        "Rows that are tokenized already",
        "Your own corruption",
    ]


def test_step_by_step(run: Run, tokenizer: Any) -> None:
    (encoded,) = run("Step by step")
    assert texts(encoded, tokenizer) == [
        (asked("reverse abc"), "c" + EOS),
        (asked("reverse abc\n\nc"), "cb" + EOS),
        (asked("reverse abc\n\nc\n\ncb"), "cba" + EOS),
    ]
    assert [example.part for example in encoded.examples] == [0, 1, 2]


def test_filter_and_augment(run: Run, tokenizer: Any) -> None:
    with_system = (asked("reverse ab", system="abc"), "ba" + EOS)
    without = (asked("reverse ab"), "ba" + EOS)
    found = []
    for epoch in range(40):
        good, bad = run("Filter and augment", epoch)
        found += texts(good, tokenizer)
        assert (bad.examples, bad.counts.dropped_by_hook) == ([], 1)
    assert set(found) == {with_system, without}
    assert 10 <= found.count(without) <= 30
    again = [texts(run("Filter and augment", epoch)[0], tokenizer)[0] for epoch in range(40)]
    assert again == found


def test_rows_that_are_tokenized_already(run: Run) -> None:
    ((example,),) = [one.examples for one in run("Rows that are tokenized already")]
    assert example.input_ids.tolist() == [0, 2, 6, 3, 14, 13, 12, 1]
    assert example.response_mask.tolist() == [False] * 4 + [True] * 4


def test_your_own_corruption(run: Run, tokenizer: Any) -> None:
    prompt, whole = asked("reverse abcde"), asked("reverse abcde") + "edcba" + EOS
    gaps = set()
    for epoch in range(30):
        ((example,),) = [one.examples for one in run("Your own corruption", epoch)]
        gap = example.response_mask
        assert tokenizer.decode(example.input_ids) == whole
        assert example.noisy_ids is not None
        assert (example.noisy_ids[~gap] == example.input_ids[~gap]).all()
        assert tokenizer.decode(example.noisy_ids[gap]) == MASK * int(gap.sum())
        assert not gap[: len(tokenizer(prompt)["input_ids"])].any()
        positions = gap.nonzero()[0].tolist()
        assert positions == list(range(positions[0], positions[-1] + 1))
        gaps.add((positions[0], positions[-1]))
    assert len(gaps) > 5


def test_too_long_an_example_with_a_gap(run: Run) -> None:
    ((example,),) = [one.examples for one in run("Your own corruption", max_length=18)]
    # The prompt and the first letter of the answer.
    assert len(example.input_ids) == 18
    assert example.response_mask.tolist() == [False] * 17 + [True]
    (encoded,) = run("Your own corruption", max_length=17)
    assert (encoded.examples, encoded.counts.dropped_by_hook) == ([], 1)


def test_a_step_of_training_sees_the_gap_and_nothing_else(run: Run, tokenizer: Any) -> None:
    examples = [one for epoch in (0, 1) for one in run("Your own corruption", epoch)[0].examples]
    step = LocalStep((pad(examples, tokenizer.eos_token_id),), epoch=0, positions={})
    noise = NoiseSource(ObjectiveConfig(), 0, tokenizer.mask_token_id, rank=0, world_size=1)
    counts = Report(examples=2, response_tokens=step.num_response_tokens)
    (batch,) = noise.micro_batches(step, counts, step=5)
    # [2, L]: the noise is the hook's, the targets are the clean tokens of the gaps.
    noisy, clean, gap = (
        torch.tensor([getattr(example, name).tolist() for example in examples])
        for name in ("noisy_ids", "input_ids", "response_mask")
    )
    assert torch.equal(batch.noisy_ids, noisy)
    assert torch.equal(batch.targets, clean[gap])
    assert batch.positions.tolist() == gap.flatten().nonzero().squeeze(1).tolist()
    lengths = gap.sum(1, keepdim=True)
    expected = (1 / (2 * lengths)).expand(gap.shape)[gap]
    torch.testing.assert_close(batch.coefficients, expected)
