"""How much `llada-sft check` reads of what the tokenizer alone does, on generated chats of 2 KB.

    python benchmarks/check.py [--rows 16000] [--files 3000] [--processes 2] [--repeat 3]
        [--out FILE]

Both have the same number of processes, which are started before the clock is; the tokenizer alone
gets the same texts from memory, one by one, as a hook calls it, and in batches. The check is all of
it: files are indexed, rows read, parsed, encoded by the hook, hashed, and the first epoch of
`--ranks` ranks is gone through, packed and padded.

The last two lines check `--files` rows, in as many files of one row and in 8 files, padded:
`times 8 files` is how much longer the former takes.

Rates are of the clock, and of all processes' CPU together, which others on the machine disturb
less. All passes are made in turns; the best counts.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))

import chat_rows
import report

from llada_sft.check.reading import BuildWorker, Worker
from llada_sft.check.survey import Request, survey
from llada_sft.check.workers import Workers
from llada_sft.config.schema import Config, RunConfig
from llada_sft.config.sections.data import DataConfig
from llada_sft.config.sections.model import ModelConfig
from llada_sft.config.sections.train import TrainConfig
from llada_sft.data.examples.tokenizer import TokenIds, load_tokenizer

PACKAGES = ("numpy", "orjson", "tokenizers", "transformers", "torch")
NUM_SHARDS = 8
MAX_TOKENS, MICRO_BATCH = 4096, 8
TARGET = 80
# Files of one row may take so many times as long as few files.
MOST_TIMES = 2
CHUNK = 512
Line = dict[str, Any]


class Texts:
    """What a process of the tokenizer alone holds: all texts, in memory."""

    def __init__(self, shards: list[Path], tokenizer_dir: Path) -> None:
        import orjson

        tokenizer = load_tokenizer(tokenizer_dir)
        self.backend = tokenizer.backend_tokenizer
        self.texts: list[str] = []
        for row in chain.from_iterable(shard.read_bytes().splitlines() for shard in shards):
            prompt, answer = orjson.loads(row)["messages"]
            rendered = tokenizer.apply_chat_template([prompt], tokenize=False)
            self.texts += [rendered, answer["content"]]


@dataclass(frozen=True)
class BuildTexts:
    shards: list[Path]
    tokenizer_dir: Path

    def __call__(self) -> Texts:
        return Texts(self.shards, self.tokenizer_dir)


@dataclass(frozen=True)
class Encode:
    """Tokenize some of the texts; `batch` 1 is one by one."""

    begin: int
    end: int
    batch: int

    def __call__(self, held: Texts) -> int:
        texts, encode = held.texts[self.begin : self.end], held.backend
        if self.batch == 1:
            return sum(len(encode.encode(text, add_special_tokens=False).ids) for text in texts)
        groups = (texts[at : at + self.batch] for at in range(0, len(texts), self.batch))
        encoded = (encode.encode_batch(group, add_special_tokens=False) for group in groups)
        return sum(len(one.ids) for group in encoded for one in group)


def cpu_seconds(_: object) -> float:
    """Return the CPU that a worker has used; as many tasks as workers ask each of them once."""
    return time.process_time()


def measured(work: Callable[[], int], workers: Workers[Any], processes: int) -> Line:
    """Do something that counts tokens, and say how many a second."""

    def cpu() -> float:
        spent = workers.run([cpu_seconds] * processes)
        return time.process_time() + sum(seconds for _, seconds in spent)

    cpu_before, began = cpu(), time.perf_counter()
    tokens = work()
    seconds = time.perf_counter() - began
    return {
        "tokens": tokens,
        "tokens/s": tokens / seconds,
        "tokens/s of CPU": tokens / (cpu() - cpu_before),
    }


def config_of(shards: list[Path], folder: Path, batching: str) -> Config:
    packed = {"batching": "packed", "max_tokens": MAX_TOKENS} if batching == "packed" else {}
    data = DataConfig(
        train=str(shards[0].parent),
        hook=str(report.ROOT / "utils/process_data.py"),
        cache_dir=str(folder / "cache"),
        max_length=MAX_TOKENS,
        end=1,
        **packed,
    )
    model = ModelConfig(path=str(folder / "tokenizer"))
    train = TrainConfig(micro_batch_size=1 if packed else MICRO_BATCH)
    return Config(run=RunConfig(name="benchmark"), model=model, data=data, train=train)


def measure(folder: Path, rows: int, processes: int, ranks: int, repeat: int) -> list[Line]:
    """Measure everything in turns, and keep the best of each."""
    shards = chat_rows.write_shards(folder / "chat", NUM_SHARDS, rows // NUM_SHARDS)
    tokenizer = chat_rows.write_tokenizer(folder / "tokenizer")
    ids = TokenIds(len(tokenizer), tokenizer.eos_token_id, tokenizer.mask_token_id)
    configs = {name: config_of(shards, folder, name) for name in ("padded", "packed")}
    num_texts = 2 * (rows // NUM_SHARDS) * NUM_SHARDS

    def alone(batch: int, workers: Workers[Texts]) -> int:
        ends = range(0, num_texts, CHUNK)
        tasks = [Encode(begin, min(begin + CHUNK, num_texts), batch) for begin in ends]
        return sum(tokens for _, tokens in workers.run(tasks))

    def check(config: Config, workers: Workers[Worker]) -> int:
        # An index of files that are new is no part of tokenizing, but of every first check.
        shutil.rmtree(folder / "cache", ignore_errors=True)
        found = survey(Request(config, ranks), workers)
        return sum(rank.tokens - rank.examples for rank in found.epoch)

    passes: dict[str, list[Line]] = {}
    with ExitStack() as stack:

        def started(build: Callable[[], Any]) -> Workers[Any]:
            return stack.enter_context(Workers(build, processes))

        texts = started(BuildTexts(shards, folder / "tokenizer"))
        works: dict[str, tuple[Workers[Any], Callable[[], int]]] = {
            "tokenizer alone, one by one": (texts, lambda: alone(1, texts)),
            "tokenizer alone, batches of 64": (texts, lambda: alone(64, texts)),
        }
        for name, config in configs.items():
            workers = started(BuildWorker(config.data, folder / "tokenizer", ids))
            works[f"check, {name}"] = workers, partial(check, config, workers)
        for _ in range(repeat):
            for name, (workers, work) in works.items():
                passes.setdefault(name, []).append(measured(work, workers, processes))
    return [_best(name, lines) for name, lines in passes.items()]


def measure_files(
    folder: Path, num_files: int, processes: int, ranks: int, repeat: int
) -> list[Line]:
    """Check the same rows in files of one row each and in few files; keep the best of each."""
    shards = chat_rows.write_shards(folder / "few", NUM_SHARDS, num_files // NUM_SHARDS)
    tokenizer = chat_rows.write_tokenizer(folder / "tokenizer")
    ids = TokenIds(len(tokenizer), tokenizer.eos_token_id, tokenizer.mask_token_id)
    rows = [row for shard in shards for row in shard.read_bytes().splitlines(keepends=True)]
    (folder / "many").mkdir()
    files = [folder / "many" / f"{number:06}.jsonl" for number in range(len(rows))]
    for file, row in zip(files, rows, strict=True):
        file.write_bytes(row)
    passes: dict[str, list[Line]] = {}
    with ExitStack() as stack:
        works = {}
        for name, of in (("8 files", shards), (f"{len(files):,} files", files)):
            config = config_of(of, folder, "padded")
            workers = stack.enter_context(
                Workers(BuildWorker(config.data, folder / "tokenizer", ids), processes)
            )
            works[f"check, {len(rows):,} rows in {name}"] = (config, workers)
        for _ in range(repeat):
            for name, (config, workers) in works.items():

                def check(config: Config = config, workers: Any = workers) -> int:
                    shutil.rmtree(folder / "cache", ignore_errors=True)
                    found = survey(Request(config, ranks), workers)
                    return sum(rank.tokens - rank.examples for rank in found.epoch)

                passes.setdefault(name, []).append(measured(check, workers, processes))
    lines = [_best(name, of_name) for name, of_name in passes.items()]
    few = dict(lines[0])
    for line in lines:
        times = [few[key] / line[key] for key in ("tokens/s", "tokens/s of CPU")]
        reached = "yes" if times[0] <= MOST_TIMES else "NO"
        line |= {"times 8 files": times[0], "in CPU": times[1], "reached": reached}
    return lines


def _best(name: str, lines: list[Line]) -> Line:
    # Padding apart, all count the same tokens.
    rates = {key: max(line[key] for line in lines) for key in ("tokens/s", "tokens/s of CPU")}
    return {"what": name, "tokens": lines[0]["tokens"], **rates}


def with_shares(lines: list[Line]) -> list[Line]:
    """Add what each rate is of the tokenizer's, one by one."""
    alone = dict(lines[0])
    for line in lines:
        shares = [100 * line[key] / alone[key] for key in ("tokens/s", "tokens/s of CPU")]
        checked = line["what"].startswith("check")
        reached = ("yes" if shares[0] >= TARGET else "NO") if checked else ""
        line |= {"%": shares[0], "% of CPU": shares[1], "reached": reached}
    return lines


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=16_000)
    parser.add_argument("--files", type=int, default=3_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=NUM_SHARDS)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("check.json"))
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    about = report.surroundings(PACKAGES)
    sizes = (options.rows, options.processes, options.ranks, options.repeat)
    with tempfile.TemporaryDirectory() as name:
        lines = with_shares(measure(Path(name), *sizes))
    with tempfile.TemporaryDirectory() as name:
        by_files = measure_files(Path(name), options.files, *sizes[1:])
    report.print_table(lines)
    report.print_table(by_files)
    measured_with = {"rows": options.rows, "processes": options.processes, "target": TARGET}
    report.write(
        options.out, {**about, **measured_with, "lines": lines, "by_number_of_files": by_files}
    )


if __name__ == "__main__":
    main()
