"""What docs/samplers.md shows runs, and names every sampler and setting as they are."""

import re
from pathlib import Path
from typing import Any

from llada_sft.choices import SAMPLERS
from llada_sft.generation.settings import SamplerSettings
from tests.unit.generation.conftest import GOLDEN

TEXT = (Path(__file__).parents[3] / "docs/samplers.md").read_text()


def test_the_example_runs() -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(example.replace("out/mine", str(GOLDEN / "tiny_llada")), names)
    assert [0 < len(answer.ids) <= 256 for answer in names["answers"]] == [True, True]


def test_every_sampler_is_described() -> None:
    described = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert sorted(described) == sorted(SAMPLERS)


def test_settings_are_named_as_they_are() -> None:
    named = {name for name in re.findall(r"`(\w+)(?:=\w+)?`", TEXT) if "_" in name}
    others = {"num_passes", "num_rows", "batch_size", "suppress_tokens"}
    assert named - set(SAMPLERS) - others <= vars(SamplerSettings()).keys()
