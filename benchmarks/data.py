"""What the data plane does in a second, against its targets, on generated chat rows of 2 KB.

    python benchmarks/data.py [--rows 80000] [--memory-rows 10000000] [--out FILE]

parse      rows read from 8 shards plus orjson: what is done with a row before the hook sees it
streaming  the same files through `datasets` (pip install datasets; without it the line is skipped)
tokenized  the steps that a rank trains on, packed, against the tokenizer alone on the same texts in
           one thread: one text at a time, as a hook calls it, and in batches of 64
resume     from the index of a file to the row at a position
fill       useful tokens of packed micro-batches, for chat-like lengths (mean 749, at most 4096)
memory     peak of a process that indexes, shuffles and reads one file, over that of a bare Python;
           numpy included, torch not: the stream works without it

One process, files in the page cache, best of three. Rates are per second of CPU, all threads
together: what one core does, also where others share it. Times of `resume` are the clock's.
MB are 10^6 bytes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))

import chat_rows
import report

PACKAGES = ("numpy", "orjson", "tokenizers", "transformers", "torch", "datasets", "pyarrow")
NUM_SHARDS = 8
NUM_TOKENIZED = 4000
REPEAT = 3
MAX_TOKENS = 4096
LONG_AGO = 1_600_000_000
Line = dict[str, Any]


def line(what: str, value: float, unit: str, target: float | None = None) -> Line:
    """Make a line of the table; more is better for a rate or a share, less for anything else."""
    reached = ""
    if target is not None:
        more = unit.endswith("/s") or unit in ("x", "%")
        reached = "yes" if (value >= target if more else value < target) else "NO"
    return {
        "what": what,
        "value": value,
        "unit": unit,
        "target": "" if target is None else target,
        "reached": reached,
    }


def best_rate(passes: Callable[[], int]) -> float:
    """Return how many a second of CPU, of the fastest pass; `passes` returns how many it did."""
    rates = []
    for _ in range(REPEAT):
        began = time.process_time()
        count = passes()
        rates.append(count / (time.process_time() - began))
    return max(rates)


def measure_parse(shards: list[Path], cache: Path) -> list[Line]:
    """Read every row and parse it."""
    import orjson

    from llada_sft.data.rows.stream import RowStream
    from llada_sft.data.sources import name_shards

    def rate(files: list[Path], shuffle: bool) -> float:
        stream = RowStream(
            name_shards(files, files[0].parent), seed=0, shuffle=shuffle, cache_dir=cache
        )

        def read_all() -> int:
            for row in stream.rows(0, stream.start_positions()):
                orjson.loads(row.text)
            return stream.num_rows

        return best_rate(read_all)

    texts = shards[0].read_bytes().splitlines()

    def only_parse() -> int:
        for text in texts:
            orjson.loads(text)
        return len(texts)

    return [
        line("parse, shuffled, 8 files", rate(shards, True), "rows/s", 250_000),
        line("parse, shuffled, 1 file", rate(shards[:1], True), "rows/s"),
        line("parse, file after file", rate(shards, False), "rows/s", 250_000),
        line("orjson alone, rows in memory", best_rate(only_parse), "rows/s"),
    ]


def measure_streaming(shards: list[Path], ours: float) -> list[Line]:
    """Read the same rows with HF datasets."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        print(f"streaming skipped: {error} (pip install datasets)\n")
        return []

    def read_all() -> int:
        files = [str(shard) for shard in shards]
        rows = load_dataset("json", data_files=files, split="train", streaming=True)
        return sum(1 for _ in rows)

    theirs = best_rate(read_all)
    return [
        line("HF datasets streaming", theirs, "rows/s"),
        line("parse, file after file, over HF streaming", ours / theirs, "x", 8),
    ]


def measure_tokenized(shards: list[Path], folder: Path) -> list[Line]:
    """Tokenize and pack rows, and let the tokenizer alone do the same texts."""
    import orjson

    from llada_sft.config.sections.data import DataConfig
    from llada_sft.data.examples.tokenizer import TokenIds, load_tokenizer
    from llada_sft.data.sources import list_sources
    from llada_sft.data.steps.dataset import StepDataset
    from llada_sft.data.steps.local_step import StepSize

    chat_rows.write_tokenizer(folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer")
    ids = TokenIds(len(tokenizer), tokenizer.eos_token_id, tokenizer.mask_token_id)
    few = folder / "few"
    few.mkdir()
    rows = list(islice(_lines(shards), NUM_TOKENIZED))
    (few / "a.jsonl").write_bytes(b"".join(rows))
    os.utime(few / "a.jsonl", (LONG_AGO, LONG_AGO))
    texts = []
    for question, answer in (orjson.loads(row)["messages"] for row in rows):
        texts += [tokenizer.apply_chat_template([question], tokenize=False), answer["content"]]
    config = DataConfig(
        train=str(few),
        hook=str(report.ROOT / "utils/process_data.py"),
        cache_dir=str(folder / "cache"),
        max_length=MAX_TOKENS,
        end=1,
        batching="packed",
        max_tokens=MAX_TOKENS,
    )
    sources = list_sources(config, epochs=1)
    dataset = StepDataset(config, folder / "tokenizer", ids, sources, 0, StepSize(1, 1))

    def packed() -> int:
        # Loading the tokenizer, before the first step, is not what is measured.
        return sum(step.num_tokens - step.num_examples for step in steps)

    backend = tokenizer.backend_tokenizer

    def batches() -> int:
        groups = (texts[start : start + 64] for start in range(0, len(texts), 64))
        encoded = (backend.encode_batch(group, add_special_tokens=False) for group in groups)
        return sum(len(one.ids) for group in encoded for one in group)

    def one_by_one() -> int:
        return sum(len(backend.encode(text, add_special_tokens=False).ids) for text in texts)

    rates: dict[str, list[float]] = {"packed": [], "batches": [], "one by one": []}
    # In turns, so that whatever else the machine does hits all alike.
    for _ in range(REPEAT):
        steps = iter(dataset)
        first = next(steps)
        began = time.process_time()
        rates["packed"].append(packed() / (time.process_time() - began))
        del first
        for name, alone in (("batches", batches), ("one by one", one_by_one)):
            began = time.process_time()
            rates[name].append(alone() / (time.process_time() - began))
    best = {name: max(of_passes) for name, of_passes in rates.items()}
    return [
        line("tokenizer alone, batches of 64", best["batches"], "tokens/s"),
        line("tokenizer alone, one by one", best["one by one"], "tokens/s"),
        line("tokenized and packed", best["packed"], "tokens/s"),
        line(
            "tokenized and packed over one by one",
            100 * best["packed"] / best["one by one"],
            "%",
            90,
        ),
        line("tokenized and packed over batches", 100 * best["packed"] / best["batches"], "%"),
    ]


def _lines(shards: list[Path]) -> Iterator[bytes]:
    for shard in shards:
        yield from shard.read_bytes().splitlines(keepends=True)


def measure_resume(files: dict[str, Path], cache: Path) -> list[Line]:
    """Go on at several rows of a file; the slowest counts, of each the fastest of three."""
    from llada_sft.data.rows.position import FilePosition
    from llada_sft.data.rows.stream import RowStream
    from llada_sft.data.sources import name_shards

    def first_row_ms(stream: RowStream, at: dict[str, FilePosition]) -> float:
        began = time.perf_counter()
        next(stream.rows(0, at))
        return 1000 * (time.perf_counter() - began)

    def slowest_ms(file: Path, shuffle: bool) -> float:
        stream = RowStream(
            name_shards([file], file.parent), seed=0, shuffle=shuffle, cache_dir=cache
        )
        last = stream.num_rows - 1
        found = []
        for row in (0, last // 3, last * 2 // 3, last):
            at = {file.name: FilePosition(row, 0)}
            found.append(min(first_row_ms(stream, at) for _ in range(REPEAT)))
        return max(found)

    return [
        line(f"resume, {name}, {how}", slowest_ms(file, how == "shuffled"), "ms", 10)
        for name, file in files.items()
        for how in ("in order", "shuffled")
    ]


def measure_fill() -> list[Line]:
    """Pack lengths alone."""
    import numpy as np

    from llada_sft.config.sections.data import DataConfig
    from llada_sft.data.examples.encode import Example
    from llada_sft.data.steps.packing import packs

    buffer = DataConfig(train="any").pack_buffer
    random = np.random.default_rng(0)
    lengths = random.lognormal(np.log(749) - 0.5, 1.0, 20_000).clip(8, 4096).astype(int)

    def example(length: int) -> Example:
        mask = np.ones(length, np.bool_)
        return Example(np.zeros(length, np.int64), mask, None, False, "a.jsonl", 1, 0)

    lines = []
    for max_tokens in (4096, 8192, 16384):
        num_groups = sum(1 for _ in packs([], map(example, lengths.tolist()), max_tokens, buffer))
        fill = 100 * lengths.sum() / (num_groups * max_tokens)
        lines.append(line(f"fill, max_tokens {max_tokens}", float(fill), "%", 99.5))
    return lines


def write_many_rows(path: Path, num_rows: int) -> None:
    """Write small rows, and one that is large, so that lengths need more than a byte."""
    block = b'{"prompt": "a", "response": "b"}\n' * 100_000
    with path.open("wb") as file:
        file.write(b'{"prompt": "' + b"a" * 100_000 + b'", "response": "b"}\n')
        for _ in range(num_rows // 100_000):
            file.write(block)
    os.utime(path, (LONG_AGO, LONG_AGO))


def measure_memory(path: Path, num_rows: int, cache: Path) -> list[Line]:
    """Start twice as a rank that has all these rows: with a scan, and with the index."""
    call = [sys.executable, __file__, "--cache", str(cache)]
    starts = [float(subprocess.check_output([*call, "--memory-of", str(path)])) for _ in range(2)]
    millions = f"{num_rows / 1e6:g} M rows"
    return [
        line(f"memory, {millions}, {which} start", peak, "MB", 300)
        for which, peak in zip(("first", "second"), starts, strict=True)
    ]


def peak_mb() -> float:
    """Return the peak of this process; unlike getrusage's, it begins with the program."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def added_by_rows(path: Path, cache: Path) -> float:
    """Index, shuffle, and read some rows; return the MB over those of a bare interpreter."""
    bare = "print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
    before = int(subprocess.check_output([sys.executable, "-c", bare])) * 1024 / 1e6
    from llada_sft.data.rows.stream import RowStream
    from llada_sft.data.sources import name_shards

    stream = RowStream(name_shards([path], path.parent), seed=0, shuffle=True, cache_dir=cache)
    for epoch in range(2):
        for _ in islice(stream.rows(epoch, stream.start_positions()), 10_000):
            pass
    return peak_mb() - before


def measure(folder: Path, rows: int, memory_rows: int) -> list[Line]:
    """Measure every line."""
    cache = folder / "cache"
    shards = chat_rows.write_shards(folder / "chat", NUM_SHARDS, rows // NUM_SHARDS)
    for shard in shards:
        os.utime(shard, (LONG_AGO, LONG_AGO))
    size = sum(shard.stat().st_size for shard in shards)
    lines = [line("mean row", size / (rows // NUM_SHARDS * NUM_SHARDS), "bytes")]
    parse = measure_parse(shards, cache)
    lines += parse
    # In the order that HF's streaming reads in.
    lines += measure_streaming(shards, parse[2]["value"])
    lines += measure_tokenized(shards, folder)
    many = folder / "many.jsonl"
    write_many_rows(many, memory_rows)
    lines += measure_memory(many, memory_rows, folder / "many_cache")
    whole = folder / "whole.jsonl"
    whole.write_bytes(b"".join(shard.read_bytes() for shard in shards))
    os.utime(whole, (LONG_AGO, LONG_AGO))
    files = {f"{rows:,} chat rows": whole, f"{memory_rows / 1e6:g} M rows": many}
    lines += measure_resume(files, folder / "many_cache")
    return lines + measure_fill()


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=80_000)
    parser.add_argument("--memory-rows", type=int, default=10_000_000)
    parser.add_argument("--out", type=Path, default=Path("data.json"))
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(added_by_rows(options.memory_of, options.cache))
        return
    # One core; and no requests for anything that datasets may like to know.
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    about = report.surroundings(PACKAGES)
    with tempfile.TemporaryDirectory() as name:
        os.environ["HF_HOME"] = name
        lines = measure(Path(name), options.rows, options.memory_rows)
    report.print_table(lines)
    report.write(options.out, {**about, "rows": options.rows, "lines": lines})


if __name__ == "__main__":
    main()
