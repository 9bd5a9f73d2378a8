"""`llada-sft check`: read, judge, print."""

import os
import sys
from pathlib import Path

import orjson

from llada_sft.check.findings import findings_of
from llada_sft.check.reading import BuildWorker
from llada_sft.check.report import as_json, as_text
from llada_sft.check.survey import Request, survey
from llada_sft.check.workers import Workers, usable_cores
from llada_sft.data.examples.tokenizer import TokenIds
from llada_sft.errors import ConfigError

FINE, PROBLEMS = 0, 1


def run_check(request: Request, tokenizer_ids: TokenIds, json: bool) -> int:
    """Check the data of a config with absolute paths.

    Args:
        request: What is asked for.
        tokenizer_ids: Special tokens and vocabulary.
        json: Print JSON instead of text.

    Returns:
        The exit code: 1 if something would stop or spoil the run.

    Raises:
        LladaSftError: The data cannot be read at all.
    """
    for name, number in (("--ranks", request.ranks), ("--sample", request.sample)):
        if number is not None and number < 1:
            raise ConfigError(f"{name}: must be at least 1, got {number}")
    # Each worker is one thread: the tokenizer's own would compete with the other workers.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    config = request.config
    build = BuildWorker(config.data, Path(config.model.path), tokenizer_ids)
    with Workers(build, usable_cores()) as workers:
        surveyed = survey(request, workers)
    findings = findings_of(surveyed)
    if json:
        print(orjson.dumps(as_json(surveyed, findings), option=orjson.OPT_INDENT_2).decode())
    else:
        print(as_text(surveyed, findings, _colour()))
    return PROBLEMS if any(finding.level == "problem" for finding in findings) else FINE


def _colour() -> bool:
    # https://no-color.org: set and not empty.
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
