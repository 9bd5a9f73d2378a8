"""The benchmarks at a size for every day: what they print and write, and nothing of a speed."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llada_sft.config import load_config
from llada_sft.demo.data import write_demo
from llada_sft.model.export import export_checkpoint, network_tensors
from llada_sft.training.build_network import build_network, resolve_network

ROOT = Path(__file__).parents[2]


def measured(name: str, out: Path, *sizes: str) -> dict[str, Any]:
    """Run a benchmark; return what it wrote."""
    subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", *sizes, "--out", str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=200,
    )
    written: dict[str, Any] = json.loads(out.read_text())
    return written


@pytest.mark.slow
def test_data_has_a_line_for_each_target(tmp_path: Path) -> None:
    found = measured("data", tmp_path / "out.json", "--rows", "160", "--memory-rows", "100000")
    assert found["packages"]["orjson"]
    lines = {line["what"]: line for line in found["lines"]}
    assert 1800 < lines["mean row"]["value"] < 2600
    targets = {line["what"].split(",")[0] for line in lines.values() if line["target"] != ""}
    expected = {"parse", "tokenized and packed over one by one", "memory", "resume", "fill"}
    assert targets == expected
    # Of no machine's speed.
    assert lines["memory, 0.1 M rows, second start"]["value"] < 100
    assert all(lines[f"fill, max_tokens {n}"]["reached"] == "yes" for n in (4096, 8192, 16384))


@pytest.mark.slow
def test_grouping_fills_micro_batches_and_sorting_lets_ranks_meet(tmp_path: Path) -> None:
    found = measured("packing", tmp_path / "out.json", "--rows", "400", "--ranks", "4")
    for line, grouped in zip(found["padded"][::4], found["padded"][3::4], strict=True):
        assert (line["buffer"], grouped["buffer"]) == ("in order", "256")
        assert grouped["fill"] > line["fill"]
        assert grouped["useful, 16 accumulated"] > 1.3 * grouped["useful, 1 accumulated"]
    assert len(found["packed"]) == 2 * 3 * 3
    for line in found["packed"]:
        assert 0.9 < line["4 ranks"] < line["4, sorted 4"] < 1


@pytest.mark.slow
def test_login_node_has_a_line_for_each_command(tmp_path: Path) -> None:
    found = measured("login_node", tmp_path / "out.json", "--runs", "3", "--repeats", "1")
    commands = [row["command"] for row in found["rows"]]
    before, after = commands[:3], commands[3:]
    assert before == ["imports", "and BaseModel", "and a config"]
    assert after == ["launch.py --dry-run", "status of 3 runs"]
    assert found["rows"][0]["ratio"] == 1
    assert all(len(values) == 1 for values in found["samples"].values())


@pytest.mark.slow
def test_data_start_with_many_shards_and_ranks(tmp_path: Path) -> None:
    sizes = ("--files", "4096", "--ranks", "256", "--index-mb", "4")
    found = measured("data_start", tmp_path / "out.json", *sizes)
    first, second = found["start"]
    assert (first["shards"], first["own_shards"]) == (4096, 16)
    # Times are for the benchmark's table; memory is the same on a loaded machine.
    assert max(first["peak_mb"], second["peak_mb"]) < 200
    assert [kind["kind"] for kind in found["index"]] == [".jsonl", ".jsonl.gz", ".jsonl.zst"]
    assert len({kind["rows"] for kind in found["index"]}) == 1


@pytest.mark.slow
def test_shard_has_a_line_for_each_command(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    sizes = ("--mb", "2", "--shards", "3", "--repeat", "2", "--folder", str(tmp_path))
    found = measured("shard", out, *sizes)
    assert found["packages"]["numpy"]
    lines = {line["command"]: line for line in found["lines"]}
    assert list(lines) == ["cp", "shard", "shard --shuffle", "shard --compress zst"]
    assert lines["cp"]["of_cp"] == 100
    # Of no machine's speed.
    assert all(20 < line["peak_mb"] < 150 for name, line in lines.items() if name != "cp")
    assert {name: len(runs) for name, runs in found["runs"].items()} == dict.fromkeys(lines, 2)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.slow
def test_check_and_the_tokenizer_alone_see_the_same_tokens(tmp_path: Path) -> None:
    sizes = ("--rows", "80", "--processes", "1", "--repeat", "1")
    found = measured("check", tmp_path / "out.json", *sizes)
    lines = {line["what"]: line for line in found["lines"]}
    assert list(lines) == [
        "tokenizer alone, one by one",
        "tokenizer alone, batches of 64",
        "check, padded",
        "check, packed",
    ]
    assert len({line["tokens"] for line in lines.values()}) == 1
    assert all(line["reached"] in ("yes", "NO") for line in list(lines.values())[2:])


@pytest.mark.slow
def test_host_counts_the_gathers_of_each_loop(tmp_path: Path) -> None:
    sizes = ("--layers", "3", "--repeats", "1", "--megaparameters", "1")
    found = measured("host", tmp_path / "out.json", *sizes)
    assert found["packages"]["deepspeed"]
    lines = {(line["loop"], line["recompute"]): line["gathers"] for line in found["hooks"]}
    assert list(lines) == [
        (loop, recompute) for recompute in (False, True) for loop in ("bare", "modules", "blocks")
    ]
    for recompute in (False, True):
        assert lines["bare", recompute] == 0
        # Nine weights of a block, or the block itself.
        assert lines["modules", recompute] > lines["blocks", recompute] >= 3
    assert [line["AdamW"] for line in found["optimizer"]] == ["not fused", "fused"]


@pytest.mark.slow
def test_step_has_a_line_for_each_way(tmp_path: Path) -> None:
    rows = "--rows 8 --mean-tokens 64 --most-tokens 256"
    sizes = f"--preset tiny --layers 1 {rows} --repeat 1 --packed 512 --ways".split()
    others = measured("step", tmp_path / "others.json", *sizes, "others")["lines"]
    names = ["official, 8 rows", "official by length, 8 rows", "padded, 8 rows", "one EOS, 8 rows"]
    assert [line["way"] for line in others] == [*names, "packed, 512 tokens"]
    assert others[0]["speed-up"] == 1
    # All compute the same rows; a pack has none that are not real.
    assert others[0]["all/s"] > others[0]["real/s"]
    assert others[-1]["all/s"] == others[-1]["real/s"]
    ours = measured("step", tmp_path / "ours.json", *sizes, "ours")["lines"]
    assert {line["way"].rpartition(", ")[2] for line in ours} == {"none", "selective", "full"}


@pytest.mark.slow
def test_generate_has_a_line_for_each_sampler_and_length(tmp_path: Path) -> None:
    sizes = ("--steps", "2", "--prompts", "2", "--lengths", "32", "64")
    found = measured("generate", tmp_path / "out.json", *sizes)
    names = [line["sampler"] for line in found["summary"]]
    assert [line["sampler"] for line in found["lines"]] == names * 2
    assert {name.split()[0] for name in names} == {
        *("official", "verify,", "threshold", "factor", "entropy", "prefix", "dual")
    }
    official, verified = found["summary"][:2]
    assert official["passes"] == official["rows"] == 48
    assert verified["same %"] == 100
    assert verified["passes"] < 48 <= verified["rows"]


@pytest.mark.slow
def test_generate_in_blocks_compares_caches(tmp_path: Path) -> None:
    sizes = ("--steps", "2", "--prompts", "2", "--lengths", "64")
    lines = measured("generate_in_blocks", tmp_path / "out.json", *sizes)["lines"]
    assert [line["sampler"].split(",")[0] for line in lines] == ["llada2"] * 4 + ["llada21"] * 2
    for without, cached in zip(lines[::2], lines[1::2], strict=True):
        assert cached["passes"] == without["passes"]
        assert cached["positions"] <= without["positions"]


@pytest.mark.slow
def test_head_compares_both_ways(tmp_path: Path) -> None:
    sizes = ("--positions", "64", "--vocabulary", "20000", "--width", "32", "--repeats", "1")
    found = measured("head", tmp_path / "out.json", *sizes)
    assert [row["way"] for row in found["heads"]] == ["pieces", "full logits"]
    assert all(row["s"] > 0 and row["peak_gb"] > 0 for row in found["heads"])


@pytest.mark.slow
def test_attention_compares_blocks_and_packs(tmp_path: Path) -> None:
    sizes = ("--packs", "512", "--heads", "2", "--kv-heads", "1", "--repeats", "1")
    found = measured("attention", tmp_path / "out.json", *sizes)
    lines = [(line["what"], line["documents"] > 1) for line in found["lines"]]
    assert lines == [("blocks", True), ("packed", True), ("blocks", False)]
    assert all(line["ratio"] > 0 and line["mb"] > 0 for line in found["lines"])


def demo_model(folder: Path) -> None:
    """Make the demo's data, and a model that was not trained."""
    write_demo(folder / "demo")
    (folder / "utils").symlink_to(ROOT / "utils")
    config = load_config(ROOT / "config/demo.yaml", [f"model.path={folder / 'demo/tokenizer'}"])
    model = build_network(config.model, resolve_network(config.model), seed=0)
    tokenizer = folder / "demo/tokenizer"
    export_checkpoint(
        network_tensors(model), model.config, tokenizer, folder / "demo/model", torch.float32
    )


@pytest.mark.slow
def test_endings_have_a_line_for_each_end(tmp_path: Path) -> None:
    """After three steps nothing is right; with tokens that are never written there are two."""
    sizes = [
        "--base-steps=2",
        "--steps=3",
        "--batch=4",
        "--held-out=4",
        "--longest=6",
        "--end-tokens=8",
    ]
    found = measured("endings", tmp_path / "out.json", *sizes)
    others = "among the others"
    assert [line["end"] for line in found["ends"]] == [
        *("batch_max", "1", "void", f"void, {others}", "rainbow", f"rainbow, {others}"),
    ]
    for line in found["ends"]:
        assert [each["canvas"] for each in line["answers"]] == [7, 14, 28]
        assert all(0 <= each["exact"] <= 1 for each in line["answers"])


@pytest.mark.slow
def test_variances_have_a_line_for_each_estimator(tmp_path: Path) -> None:
    """At a size at which no variance means anything: the means agree, and all numbers are there."""
    demo_model(tmp_path)
    sizes = {"rows": 8, "examples": 64, "batches": 30, "sets": 3, "repeats": 3, "gradients": 4}
    arguments = [f"--{name}={value}" for name, value in sizes.items()]
    subprocess.run(
        [sys.executable, ROOT / "benchmarks/variance.py", "--config", ROOT / "config/demo.yaml",
         *arguments, "--warmup=5", "--out", tmp_path / "out.json"],
        cwd=tmp_path, check=True, capture_output=True, timeout=200,
    )  # fmt: skip
    lines = json.loads((tmp_path / "out.json").read_text())["models"]["demo/model"]
    assert lines[0]["estimator"] == "bernoulli, independent (official)"
    assert len(lines) == 10
    (default,) = (line for line in lines if line["estimator"] == "exact (default)")
    for line in lines:
        error = math.hypot(line["mean_se"], default["mean_se"])
        assert abs(line["mean"] - default["mean"]) < 4 * error
        for name in ("masks", "all", "gradient"):
            assert line[f"{name}_x_less"] == pytest.approx(default[name] / line[name])


@pytest.mark.slow
def test_a_validation_has_a_line_for_each_estimator_and_number_of_draws(tmp_path: Path) -> None:
    demo_model(tmp_path)
    subprocess.run(
        [sys.executable, ROOT / "benchmarks/validation.py", "--config", ROOT / "config/demo.yaml",
         "--model", "demo/model", "--rows=12", "--draws", "1", "4", "--seeds=6",
         "--out", tmp_path / "out.json"],
        cwd=tmp_path, check=True, capture_output=True, timeout=200,
    )  # fmt: skip
    lines = json.loads((tmp_path / "out.json").read_text())["models"]["demo/model"]
    assert [(line["estimator"], line["draws"]) for line in lines] == [
        (name, draws) for draws in (1, 4) for name in ("official", "exact", "grid")
    ]
    for line in lines:
        official = next(each for each in lines if each["draws"] == line["draws"])
        error = math.hypot(line["loss_mean_se"], official["loss_mean_se"])
        assert abs(line["loss"] - official["loss"]) < 6 * error
        assert line["loss_x_less"] == pytest.approx(official["loss_error"] / line["loss_error"])


@pytest.mark.slow
def test_the_trial_of_a_hook_has_a_line_for_each_tokenizer(tmp_path: Path) -> None:
    small = ["--repeats", "1", "--vocabulary", "300"]
    found = measured("hook_trial", tmp_path / "out.json", *small)
    assert [line["tokenizer"] for line in found["lines"]] == ["tokenizer", "large"]
    assert all(line["hook"] > 0 for line in found["lines"])
