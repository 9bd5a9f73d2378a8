"""The pages that are made from the code are not stale, and say something of everything."""

import re
from pathlib import Path

import pytest
import write
import write_commands
from message_templates import messages

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize("name", write.PAGES)
def test_a_page_is_not_stale(name: str) -> None:
    is_fresh = (DOCS / name).read_text(encoding="utf-8") == write.PAGES[name]()
    assert is_fresh, f"docs/{name} is stale; run:  make docs-pages  (or python docs/write.py)"


def test_every_argument_has_a_meaning() -> None:
    rows = re.findall(r"^\| `(.+)` \| (.*) \|$", write_commands.reference(), re.MULTILINE)
    assert len(rows) > 80
    assert [argument for argument, meaning in rows if not meaning.strip(" ;")] == []


@pytest.mark.parametrize(
    "row",
    [
        "| `--config FILE` | the run, see config/ |",
        "| `--mfu SHARE` | assumptions of --plan: of the GPU's rate, reached; default: `0.4` |",
        "| `--dtype DTYPE` | of the weights written; one of `bf16`, `fp32` |",
        "| `[section.key=value ...]` | change a key of the config |",
    ],
)
def test_an_argument_is_shown_with_its_values_and_its_default(row: str) -> None:
    assert row in write_commands.reference()


def test_a_command_is_shown_as_one_types_it() -> None:
    shown = write_commands.reference()
    assert "\nllada-sft shard IN ... OUT --num-shards NUM_SHARDS [OPTIONS]\n" in shown
    assert "\nOne of `--prompt`, `--input`.\n" in shown


# Each is found in another way.
FOUND = {
    # The argument of an error; a constant of the module is written out.
    "{file}: missing, though model.safetensors.index.json names it; download it",
    # A name that an error gets; what it always is, is written out.
    "run {run} is {verb} by {owner}: wait for it, or stop it with  scancel {job_id}",
    # Returned by a function that a loop puts into a list, which is joined.
    "slurm.extra.dependency: {kind}:{number}: SLURM has no job {number}: this one would wait for"
    " ever; remove it",
    # A ValueError of a config section.
    "init: random needs model.size",
    # Yielded by a function that yields what is wrong.
    "{key}: only {allowed} is implemented, got {values}",
    # A finding of `llada-sft check`.
    "{repeats} of {rows} rows repeat another: they are learned as often",
    # Why a job gave up, which the journal keeps.
    "the same {cause} {where} in two attempts: {error}",
    # Printed to standard error.
    "warning: {path}: the profile is not written: {error}",
}


def test_messages_are_found_whatever_way_they_take() -> None:
    assert FOUND - {message.template for message in messages()} == set()
