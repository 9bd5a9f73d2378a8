"""A hook that fills the disk of the run, on rank 0, as soon as there is a checkpoint."""

import os
import shutil
from pathlib import Path

from llada_sft.data.records import encode_record
from llada_sft.training.noising import NoiseSource

RUN = Path(__file__).parents[1]
FILLER = RUN.parent / "filler"
LEFT_BYTES = 256 * 1024
micro_batches = NoiseSource.micro_batches


def filling(self, local, counts, step):
    saved = any(RUN.glob("checkpoints/step_*/checkpoint.json"))
    # Once: when there is room again, the run is to finish.
    if saved and os.environ["SLURM_PROCID"] == "0" and not FILLER.exists():
        FILLER.write_bytes(b"x" * (shutil.disk_usage(RUN).free - LEFT_BYTES))
    return micro_batches(self, local, counts, step)


NoiseSource.micro_batches = filling


def process_data(record, tokenizer, max_length):
    return encode_record(record, tokenizer)
