"""Lines far longer than what is read of one, in a process of its own for its peak of memory.

    python -m tests.unit.data.huge_line FOLDER

Writes a shard of each kind whose second line is huge, hardly anything of it on the disk; reads them
as a rank does, counts their rows as the launcher does, and prints what came of it as JSON.
"""

import json
import os
import sys
from pathlib import Path

from llada_sft.data.examples import encode
from llada_sft.data.rows.count import count_rows
from llada_sft.demo.data import make_tokenizer
from tests.unit.data.reading import KINDS, good, read, write

HOLE_BYTES = {".jsonl": 10**9, ".jsonl.gz": 256 * 2**20, ".jsonl.zst": 256 * 2**20}
FIRST, BEGIN, END, LAST = good("abc") + b"\n", b'{"prompt": "', b'"}\n', good("def")


def write_huge(folder: Path) -> list[Path]:
    block = b"a" * 2**20
    paths = [folder / f"a{kind}" for kind in KINDS]
    for path, (kind, compress) in zip(paths, KINDS.items(), strict=True):
        with path.open("wb") as file:
            file.write(compress(FIRST + BEGIN))
            if kind == ".jsonl":
                file.seek(HOLE_BYTES[kind], os.SEEK_CUR)
            else:
                # One behind the other, members and frames are one text.
                file.writelines([compress(block)] * (HOLE_BYTES[kind] // len(block)))
            file.write(compress(END + LAST))
    return paths


def peak_mb() -> float:
    """Return the process's own peak; getrusage's may be that of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (one for one in lines if one.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def main() -> None:
    """Read and count, and say by how much the peak of memory grew."""
    folder, tokenizer = Path(sys.argv[1]), make_tokenizer()
    encode.load_tokenizer = lambda *_: tokenizer
    paths = write_huge(write(folder, {}))
    before = peak_mb()
    found = read(folder)
    counted = [count_rows([path]) for path in paths]
    print(
        json.dumps(
            {
                "epochs": found.epochs,
                "quarantine": found.quarantine,
                "error": found.error,
                "counted": counted,
                "grew_mb": peak_mb() - before,
            }
        )
    )


if __name__ == "__main__":
    main()
