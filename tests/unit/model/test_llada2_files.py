"""LLaDA2's files: both layouts in and out, half precision, adapters."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llada_sft.config.sections.model import LoraConfig
from llada_sft.errors import CheckpointError, ConfigError
from llada_sft.model import NetworkConfig, load_model
from llada_sft.model.adapter_export import official_tensors
from llada_sft.model.adapter_plan import plan_adapters
from llada_sft.model.adapters import add_adapters
from llada_sft.model.export import export_checkpoint, network_tensors
from llada_sft.model.families.llada2 import FAMILY
from llada_sft.model.index import read_index
from llada_sft.model.layers.balance import Routing
from llada_sft.model.settings import architecture_of, read_settings
from tests.unit.model.test_llada2 import NAMES, TINY, Golden, randomised


@pytest.fixture(params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_both_layouts_give_the_same_logits(golden: Golden, tmp_path: Path) -> None:
    """Official -> stacked -> official: names, values, and model_type."""
    ids = golden.expected["input_ids"]
    expected = golden.model(ids).logits
    source = golden.directory
    for number, stacked in enumerate((True, True, False)):
        model, out = load_model(source), tmp_path / str(number)
        tensors = network_tensors(model)
        export_checkpoint(tensors, model.config, source, out, torch.float32, 200_000, stacked)
        written, settings = read_index(out), read_settings(out)
        assert written.keys() == model.architecture.tensor_shapes(stacked).keys()
        name = "model.layers.1.mlp.experts.gate_proj"
        assert (name in written) is stacked
        assert settings["model_type"] == ("llada2_moe_veomni" if stacked else "llada2_moe")
        assert architecture_of(settings) == model.architecture
        assert load_model(out)(ids).logits.equal(expected)
        source = out
    assert read_index(source).keys() == read_index(golden.directory).keys()


def test_files_of_one_layout_become_the_other(golden: Golden, tmp_path: Path) -> None:
    """As where adapters were trained on files: nothing is loaded into a network."""
    config, source = golden.model.config, golden.directory
    for stacked in (True, False):
        tensors, out = official_tensors(read_index(source)), tmp_path / str(stacked)
        export_checkpoint(tensors, config, source, out, torch.float32, stacked=stacked)
        source = out
    ids = golden.expected["input_ids"]
    assert load_model(source)(ids).logits.equal(golden.model(ids).logits)


def test_a_file_of_neither_layout_names_what_is_missing(golden: Golden, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tensors = network_tensors(golden.model)
    export_checkpoint(
        tensors, golden.model.config, golden.directory, out, torch.float32, stacked=True
    )
    stacks = load_file(out / "model.safetensors")
    del stacks["model.layers.1.mlp.experts.up_proj"]
    save_file(stacks, out / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.experts\.up_proj: missing"):
        load_model(out)


def test_nobody_reads_other_members_stacked() -> None:
    with pytest.raises(ConfigError) as caught:
        NetworkConfig().of_layout(stacked=True)
    assert str(caught.value) == ("--layout: stacked is for LLaDA2, this is LLaDA; remove it")


def test_a_shared_expert_without_rows_is_none(tmp_path: Path) -> None:
    """The class makes matrices without rows where num_shared_experts is 0."""
    model = randomised(FAMILY.config_json(**TINY | {"num_shared_experts": 0}))
    out = tmp_path / "out"
    export_checkpoint(network_tensors(model), model.config, tmp_path, out, torch.float32)
    tensors = load_file(out / "model.safetensors")
    shared = "model.layers.1.mlp.shared_experts"
    tensors[f"{shared}.up_proj.weight"] = torch.empty(0, 24)
    tensors[f"{shared}.down_proj.weight"] = torch.empty(24, 0)
    save_file(tensors, out / "model.safetensors")
    ids = torch.arange(8)[None]
    assert load_model(out)(ids).logits.equal(model(ids).logits)


def test_half_precision_routes_in_fp32(golden: Golden, tmp_path: Path) -> None:
    """The bias, the scores and what experts count; in memory and in an export."""
    model = load_model(golden.directory, torch.bfloat16)
    biases = dict(golden.model.named_buffers())
    for name, buffer in model.named_buffers():
        assert buffer.dtype == torch.float32
        assert buffer.equal(biases[name])
    routing = Routing()
    out = model(golden.expected["input_ids"], routing=routing).logits
    assert out.dtype == torch.bfloat16
    assert {logits.dtype for logits in routing.logits} == {torch.float32}
    assert out.float().sub(golden.expected["logits"]).abs().mean() < 0.05
    export_checkpoint(network_tensors(model), model.config, golden.directory, tmp_path / "out")
    again = load_model(tmp_path / "out")
    assert all(buffer.equal(biases[name]) for name, buffer in again.named_buffers())


def test_adapters_of_the_fused_matrix_and_of_the_router(golden: Golden) -> None:
    """The bias of a router is found where LoRA wraps it."""
    network, ids = golden.model.architecture, golden.expected["input_ids"]
    before = golden.model(ids).logits
    plan = plan_adapters(network, LoraConfig(targets=("query_key_value", "mlp.gate"), rank=2))
    assert plan.matches == {
        "query_key_value": network.num_layers, "mlp.gate": len(golden.layers)
    }  # fmt: skip
    add_adapters(golden.model, plan, seed=1)
    assert golden.model(ids).logits.equal(before)
    everywhere = plan_adapters(network, LoraConfig()).modules
    assert not any(name.endswith("mlp.gate") for name in everywhere)
    assert "model.layers.1.mlp.shared_experts.up_proj" in everywhere
