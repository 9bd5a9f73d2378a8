"""What the hook's trial adds to a launch: the repository's hook on the first rows of the demo.

    python benchmarks/hook_trial.py [--repeats 5] [--vocabulary 126000] [--out FILE]

CPU seconds are those of user and system together, of the launcher (`launcher`) and of the process
that runs the hook (`hook`). One line is of the demo's tokenizer, one of a made-up BPE tokenizer
with as many tokens as `--vocabulary` says. Numbers are medians.
"""

import argparse
import json
import random
import resource
import string
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import report

from llada_sft.cluster.preflight import hook_trial
from llada_sft.config import Config, load_config, resolve_paths
from llada_sft.demo.data import write_demo


def config_of(folder: Path, tokenizer: Path) -> Config:
    """Return the demo's config with another tokenizer."""
    changes = [
        f"model.path={tokenizer}",
        f"data.train={folder}/data/train",
        f"data.validation={folder}/data/heldout",
    ]
    config = load_config(report.ROOT / "config/demo.yaml", changes)
    return resolve_paths(config, report.ROOT)


def write_tokenizer(original: Path, folder: Path, size: int) -> None:
    """Write the demo's tokenizer with so many tokens more: each joins two of the others."""
    content = json.loads((original / "tokenizer.json").read_text())
    draw, words, merges = random.Random(0), list(string.ascii_letters), []
    vocabulary = {word: number for number, word in enumerate(words)}
    while len(vocabulary) < size:
        first, second = draw.choice(words), draw.choice(words)
        if len(first + second) < 14 and first + second not in vocabulary:
            vocabulary[first + second] = len(vocabulary)
            words.append(first + second)
            merges.append([first, second])
    for number, token in enumerate(content["added_tokens"]):
        token["id"] = size + number
    content["model"] = {"type": "BPE", "vocab": vocabulary, "merges": merges}
    content["post_processor"] = None
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(content))
    name = "tokenizer_config.json"
    (folder / name).write_bytes((original / name).read_bytes())


def trial(config: Config) -> dict[str, float]:
    """Return the CPU seconds of one trial, and those that it took on the clock."""

    def cpu_s(who: int) -> float:
        usage = resource.getrusage(who)
        return usage.ru_utime + usage.ru_stime

    own, children = cpu_s(resource.RUSAGE_SELF), cpu_s(resource.RUSAGE_CHILDREN)
    begin = time.monotonic()
    hook_trial.require(config)
    return {
        "launcher": cpu_s(resource.RUSAGE_SELF) - own,
        "hook": cpu_s(resource.RUSAGE_CHILDREN) - children,
        "wall": time.monotonic() - begin,
    }


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=126_000)
    parser.add_argument("--out", type=Path, default=Path("hook_trial.json"))
    options = parser.parse_args()
    about = report.surroundings(("transformers", "tokenizers"))
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_demo(folder)
        write_tokenizer(folder / "tokenizer", folder / "large", options.vocabulary)
        for tokenizer in ("tokenizer", "large"):
            config = config_of(folder, folder / tokenizer)
            times = [trial(config) for _ in range(options.repeats)]
            of_all = {key: median(found[key] for found in times) for key in times[0]}
            lines.append({"tokenizer": tokenizer, **of_all})
    report.print_table(lines)
    report.write(options.out, {**about, "lines": lines})


if __name__ == "__main__":
    main()
