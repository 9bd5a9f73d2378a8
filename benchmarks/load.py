"""How fast weights and checkpoints are read, against dd.

    python benchmarks/load.py [--megabytes 1024] [--ranks 2] [--repeats 5] [--folder DIR]

Each rank (a process of one thread) has a model directory of fp32 weights and a shard of a
checkpoint of its own, of --megabytes each. In turn, all ranks together
- read the weights with dd, and load them into a network with `load_weights`;
- read the shard with dd, and as a resume does: for its checksum, and then mapped, each page of each
  tensor touched, as a copy to a GPU does (`resume`), or copied into tensors (`resume_on_cpu`).
Before each turn the files are taken out of the page cache. A turn takes as long as its slowest
rank. The table has medians, and the rate of each kind as a share of dd's in the same round. The
first round only warms up. MB are 10^6 bytes.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1]))

import report
import torch
from safetensors.torch import save_file
from together import Ranks, Turn, dd, forget

from llada_sft.model.configuration import NetworkConfig, read_config
from llada_sft.model.families import llada
from llada_sft.model.loading import load_weights
from llada_sft.model.network import Network
from llada_sft.training.checkpoint.checksums import record_of_file
from llada_sft.training.checkpoint.shard_writer import ShardWriter, write_shard

PACKAGES = ("torch", "safetensors", "xxhash", "llada-sft")
# What is read, and dd of the same file.
KINDS = {
    "load_weights": "dd of weights",
    "resume": "dd of shard",
    "resume_on_cpu": "dd of shard",
}
_PAGE_ELEMENTS = 4096 // 4
_BLOCK_BYTES = 4 * (4 * 1024**2 + 3 * 1024 * 4096)


def make_rank(rank: int, folder: str, megabytes: int) -> Turn:
    """Return what one rank does in a turn."""
    torch.set_num_threads(1)
    model_dir = Path(folder) / f"model_{rank}"
    shard, weights = Path(folder) / f"rank_{rank}.pt", model_dir / "model.safetensors"
    blocks = max(1, megabytes * 10**6 // _BLOCK_BYTES)
    model = write_model(model_dir, blocks)
    flat = [torch.randn(megabytes * 10**6 // 12) for _ in range(3)]
    write_shard({"weights": flat[0], "moments": flat[1:]}, shard)

    def turn(kind: str) -> dict[str, float]:
        forget(path := weights if "weights" in kind else shard)
        began = time.perf_counter()
        if kind.startswith("dd"):
            return {"whole_s": dd(f"if={path}", "of=/dev/null")}
        if kind == "load_weights":
            load_weights(model, model_dir)
        else:
            record_of_file(shard)
            state = ShardWriter(maps_files=kind == "resume").load(str(shard), "cpu")
            for tensor in [state["weights"], *state["moments"]]:
                tensor[::_PAGE_ELEMENTS].sum()
        return {"whole_s": time.perf_counter() - began}

    return turn


def write_model(model_dir: Path, blocks: int) -> Network:
    """Write a model directory of random weights, and return its network."""
    model_dir.mkdir()
    sizes = {"d_model": 1024, "n_heads": 8, "mlp_hidden_size": 4096, "n_layers": blocks}
    config = NetworkConfig(
        llada.FAMILY.config_json(
            **sizes, vocab_size=64, eos_token_id=1, mask_token_id=2, pad_token_id=1
        )
    )
    config.save_pretrained(model_dir)
    model = Network(read_config(model_dir))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    save_file(dict(model.state_dict()), model_dir / "model.safetensors")
    return model


def main() -> int:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1024, help="of each file of each rank")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="the file system to read from")
    parser.add_argument("--out", type=Path, default=Path("load.json"))
    options = parser.parse_args()
    about = report.surroundings(PACKAGES)
    kinds = [*KINDS, *dict.fromkeys(KINDS.values())]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        ranks = Ranks(options.ranks, make_rank, name, options.megabytes)
        turns = [
            {kind: ranks.turn(kind)["whole_s"] for kind in kinds}
            for _ in range(options.repeats + 1)
        ][1:]
        sizes = {
            "weights": sum(path.stat().st_size for path in Path(name).glob("*/model.safetensors")),
            "shard": sum(path.stat().st_size for path in Path(name).glob("*.pt")),
        }
    rows = []
    for kind in kinds:
        against = KINDS.get(kind, kind)
        seconds = statistics.median(turn[kind] for turn in turns)
        size = sizes["weights" if "weights" in kind else "shard"] / 1e6
        share = statistics.median(turn[against] / turn[kind] for turn in turns)
        rows.append(
            {"read": kind, "mb": size, "s": seconds, "mb_per_s": size / seconds, "of_dd": share}
        )
    report.print_table(rows)
    report.write(options.out, {**about, "ranks": options.ranks, "reads": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
