"""Every cause of an attempt's end is explained to the user."""

import re
from pathlib import Path

from llada_sft.cluster.causes import Cause

ROOT = Path(__file__).parents[3]


def test_every_cause_is_explained() -> None:
    text = (ROOT / "docs/slurm-jobs.md").read_text()
    explained = re.findall(r"^- `([a-z -]+)`: ", text, re.MULTILINE)
    assert explained == [cause.value for cause in Cause]
