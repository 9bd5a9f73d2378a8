"""A hook that notes which rows each step was made of; the first attempt stays at its 25th step.

rows/<attempt>_<rank>.jsonl in the run directory: one line per step that was fed.
"""

import json
import os
import time
from pathlib import Path

from llada_sft.data.records import encode_record
from llada_sft.training.noising import NoiseSource

ATTEMPT = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
RANK = int(os.environ["SLURM_PROCID"])
NOTES = Path(__file__).parents[1] / "rows" / f"{ATTEMPT}_{RANK}.jsonl"
LAST_STEP = 25
micro_batches = NoiseSource.micro_batches


def noting(self, local, counts, step):
    if ATTEMPT == 0 and step + 1 == LAST_STEP and RANK == 0:
        # The others wait for this one, until SLURM ends it.
        time.sleep(3600)
    rows = [[key.epoch, key.file, key.line] for batch in local.micro_batches for key in batch.keys]
    NOTES.parent.mkdir(exist_ok=True)
    with NOTES.open("a") as file:
        file.write(json.dumps({"step": step + 1, "rows": rows}) + "\n")
    return micro_batches(self, local, counts, step)


NoiseSource.micro_batches = noting


def process_data(record, tokenizer, max_length):
    return encode_record(record, tokenizer)
