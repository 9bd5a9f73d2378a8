"""slurm/sample.sbatch: all tasks of a job answer a file, and a requeued job continues."""

import json
from pathlib import Path

import processes
import pytest
from cluster import Cluster
from safetensors.torch import save_file

from llada_sft.demo.data import make_tokenizer
from llada_sft.model import NetworkConfig, build_model

pytestmark = pytest.mark.slurm

SCRIPT = Path(__file__).parents[2] / "slurm/sample.sbatch"
NUM_PROMPTS = 300


def export_tiny(folder: Path) -> Path:
    """Write a random network with the demo's tokenizer, large enough to take a few seconds."""
    tokenizer = make_tokenizer()
    config = NetworkConfig.from_size(
        d_model=64,
        n_layers=2,
        n_heads=2,
        mlp_hidden_size=128,
        max_sequence_length=128,
        vocab_size=len(tokenizer),
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    state = build_model(config, seed=3).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "a.tmp")
    (folder / "a.tmp").rename(folder / "model.safetensors")
    return folder


def known(partial: Path) -> int:
    return sum(part.read_bytes().count(b"\n") for part in partial.glob("rank_*.jsonl"))


def test_a_requeued_job_continues(cluster: Cluster, tmp_path: Path) -> None:
    model = export_tiny(tmp_path / "model")
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    texts = ["abcdefgh"[: 1 + number % 8] for number in range(NUM_PROMPTS)]
    prompts.write_text("".join(f"{json.dumps(text)}\n" for text in texts))
    sbatch = ["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1"]
    request = [str(model), "--input", str(prompts), "--out", str(out)]
    options = ["--gen-length", "64", "--batch-size", "2"]
    job = cluster.run([*sbatch, str(SCRIPT), *request, *options], cwd=tmp_path).strip()
    partial = tmp_path / "answers.jsonl.partial"
    log = tmp_path / f"slurm-{job}.out"
    assert processes.wait_until(lambda: known(partial) > 10, timeout_s=120), log.read_text()
    cluster.run(["scontrol", "requeue", job])
    assert processes.wait_until(lambda: cluster.job(job)["JobState"] != "RUNNING", timeout_s=60)
    answered = known(partial)
    assert 10 < answered < NUM_PROMPTS and not out.exists()
    cluster.run(["scontrol", "update", f"JobId={job}", "StartTime=now"])
    cluster.wait_job(job, ["COMPLETED"], timeout_s=240)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["record"] for row in rows] == texts
    assert not partial.exists()
