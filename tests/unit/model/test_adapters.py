"""LoRA in a network, with PEFT itself: what is adapted, what it computes, what is exported."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llada_sft.config.sections.model import LoraConfig
from llada_sft.errors import CheckpointError, ConfigError
from llada_sft.model import Network, NetworkConfig, build_model, load_model
from llada_sft.model.adapter_export import merged_tensors, official_tensors, write_adapter
from llada_sft.model.adapter_plan import MAGNITUDE, AdapterPlan, plan_adapters
from llada_sft.model.adapters import add_adapters
from llada_sft.model.export import LazyTensor, export_checkpoint, network_tensors
from llada_sft.model.families import dream, llada
from llada_sft.model.index import fingerprint, read_index

IDS = torch.arange(24).view(2, 12) * 7 % 60 + 3
TOKENS = {"vocab_size": 64, "mask_token_id": 2, "eos_token_id": 1, "pad_token_id": 1}
LLADA = {"d_model": 32, "n_layers": 2, "n_heads": 4, "mlp_hidden_size": 48, **TOKENS}
LLADA |= {"max_sequence_length": 64}
MEMBERS = {
    "dense": (llada.FAMILY, LLADA),
    "tied": (llada.FAMILY, {**LLADA, "n_kv_heads": 2, "weight_tying": True}),
    # Its queries, keys and values have biases.
    "dream": (
        dream.FAMILY,
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 48,
            "max_position_embeddings": 64,
            **TOKENS,
        },
    ),
}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
}


@pytest.fixture(params=MEMBERS, scope="module")
def member(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with random weights."""
    family, sizes = MEMBERS[request.param]
    network = build_model(NetworkConfig(family.config_json(**sizes)), seed=3)
    out = tmp_path_factory.mktemp("model") / request.param
    export_checkpoint(network_tensors(network), network.config, out, out, torch.float32)
    return out


@pytest.fixture(params=KINDS)
def config(request: pytest.FixtureRequest) -> LoraConfig:
    return LoraConfig(rank=4, alpha=6, **KINDS[request.param])


def adapted(model_dir: Path, config: LoraConfig, seed: int = 0) -> tuple[Network, AdapterPlan]:
    network = load_model(model_dir)
    plan = plan_adapters(network.architecture, config)
    add_adapters(network, plan, seed)
    return network, plan


def trained(network: Network) -> dict[str, LazyTensor]:
    """Move the adapters as a training might; return them."""
    generator = torch.Generator().manual_seed(1)
    adapters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    for name, parameter in adapters.items():
        change = torch.randn(parameter.shape, generator=generator) * 0.05
        parameter.data += change * parameter.data.abs() if MAGNITUDE in name else change
    return {name: LazyTensor(tuple(p.shape), p.detach) for name, p in adapters.items()}


def logits(network: Any) -> Tensor:
    with torch.no_grad():
        return network(IDS).logits  # type: ignore[no-any-return]


def test_before_the_first_step_it_computes_what_the_network_does(
    member: Path, config: LoraConfig
) -> None:
    network, plan = adapted(member, config)
    assert torch.equal(logits(network), logits(load_model(member)))
    assert len(plan.modules) == 2 * 7
    names = {name for name, p in network.named_parameters() if p.requires_grad}
    assert names == plan.parameter_shapes().keys()
    assert plan.num_trained == sum(p.numel() for p in network.parameters() if p.requires_grad)


def test_values_are_those_of_the_seed(member: Path) -> None:
    def values(seed: int) -> Tensor:
        network, _ = adapted(member, LoraConfig(), seed)
        return torch.cat([p.flatten() for p in network.parameters() if p.requires_grad])

    assert torch.equal(values(0), values(0))
    assert not torch.equal(values(0), values(1))


def test_a_is_as_peft_has_it() -> None:
    """Uniform within ± 1 / √inputs: the variance is 1 / (3 · inputs)."""
    network = build_model(NetworkConfig(llada.FAMILY.config_json(**{**LLADA, "d_model": 64})))
    add_adapters(network, plan_adapters(network.architecture, LoraConfig(rank=64)), 0)
    theirs = torch.nn.Linear(64, 64, bias=False)
    torch.nn.init.kaiming_uniform_(theirs.weight, a=5**0.5)
    ours = network.get_parameter("model.transformer.blocks.0.q_proj.lora_A.default.weight")
    for weight in (ours.detach(), theirs.weight.detach()):
        assert weight.abs().max() <= 1 / 8
        assert float(weight.var()) * 3 * 64 == pytest.approx(1, rel=0.1)


def test_merged_it_computes_the_same(member: Path, config: LoraConfig, tmp_path: Path) -> None:
    network, plan = adapted(member, config)
    adapters = trained(network)
    expected = logits(network)
    merged = merged_tensors(official_tensors(read_index(member)), adapters, plan)
    export_checkpoint(merged, network.config, member, tmp_path / "out", torch.float32)
    found = logits(load_model(tmp_path / "out"))
    scale = expected.abs().max()
    assert (found - expected).abs().max() < 1e-5 * scale
    assert (logits(load_model(member)) - expected).abs().max() > 1e-2 * scale
    # Everything else is untouched, and of a tied head there is no second copy.
    before, after = read_index(member), read_index(tmp_path / "out")
    assert before.keys() == after.keys()
    weights = [load_file(next(path.glob("*.safetensors"))) for path in (member, tmp_path / "out")]
    changed = {
        name.removesuffix(".weight")
        for name, value in weights[0].items()
        if not torch.equal(value, weights[1][name])
    }
    assert changed == plan.modules.keys()


def test_merged_as_peft_merges(member: Path, config: LoraConfig) -> None:
    network, plan = adapted(member, config)
    adapters = trained(network)
    ours = merged_tensors(official_tensors(read_index(member)), adapters, plan)
    for module in plan.modules:
        layer: Any = network.get_submodule(module)
        layer.merge(safe_merge=True)
        difference = ours[f"{module}.weight"].read() - layer.get_base_layer().weight
        assert difference.abs().max() < 1e-6


# PEFT asks transformers by a name that will go.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_peft_loads_it(member: Path, config: LoraConfig, tmp_path: Path) -> None:
    network, plan = adapted(member, config)
    adapters = trained(network)
    write_adapter(adapters, plan, str(member), tmp_path / "out")
    loaded = peft.PeftModel.from_pretrained(load_model(member), tmp_path / "out")
    assert torch.equal(logits(loaded), logits(network))
    # Its own way to merge, too.
    merged = logits(loaded.merge_and_unload())
    assert (merged - logits(network)).abs().max() < 1e-5 * merged.abs().max()
    saved = load_file(tmp_path / "out/adapter_model.safetensors")
    assert len(saved) == len(adapters)
    assert sum(tensor.numel() for tensor in saved.values()) == plan.num_trained
    described = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert described["r"] == 4
    assert described["base_model_name_or_path"] == str(member)


def test_adapters_without_elements_are_not_exported(member: Path, tmp_path: Path) -> None:
    """What PEFT saves under ZeRO-3 where nobody has gathered."""
    network, plan = adapted(member, LoraConfig())
    adapters = trained(network)
    name = next(iter(adapters))
    empty = adapters | {name: LazyTensor((0,), lambda: torch.empty(0))}
    with pytest.raises(CheckpointError) as caught:
        write_adapter(empty, plan, "", tmp_path / "out")
    assert str(caught.value) == (
        f"the checkpoint has no such adapters: {name} is (0,) there,"
        f" {plan.parameter_shapes()[name]} by the lora section"
    )
    with pytest.raises(CheckpointError, match="is nothing there"):
        merged_tensors({}, {other: adapters[other] for other in adapters if other != name}, plan)
    # And where reading them gives less than they say.
    torn = adapters | {name: LazyTensor(adapters[name].shape, lambda: torch.empty(0))}
    with pytest.raises(CheckpointError, match="is not what was written"):
        write_adapter(torn, plan, "", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def architecture(member: str) -> Any:
    family, sizes = MEMBERS[member]
    return NetworkConfig(family.config_json(**sizes)).architecture


def test_targets_are_ends_of_names_in_blocks() -> None:
    config = LoraConfig(targets=("q_proj", "1.v_proj", "ff_out"))
    plan = plan_adapters(architecture("dense"), config)
    # LLaDA's head is called ff_out, too.
    blocks = "model.transformer.blocks"
    assert list(plan.modules) == [
        *(f"{blocks}.0.{name}" for name in ("q_proj", "ff_out")),
        *(f"{blocks}.1.{name}" for name in ("q_proj", "v_proj", "ff_out")),
    ]
    assert plan.matches == {"q_proj": 2, "1.v_proj": 1, "ff_out": 2}
    assert "q_proj 2, 1.v_proj 1, ff_out 2; " in plan.line()
    network = build_model(NetworkConfig(llada.FAMILY.config_json(**LLADA)))
    add_adapters(network, plan, 0)
    trained = [name for name, p in network.named_parameters() if p.requires_grad]
    assert {name.partition(".lora_")[0] for name in trained} == plan.modules.keys()


@pytest.mark.parametrize("member", ["dense", "dream"])
def test_the_default_is_every_matrix_of_attention_and_mlp(member: str) -> None:
    plan = plan_adapters(architecture(member), LoraConfig())
    assert set(plan.matches.values()) == {2}
    assert len(plan.matches) == 7


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("q_porj", "matches no matrix; there are q_proj, k_proj, v_proj, attn_out, ff_proj, up"),
        ("proj", "matches no matrix"),
        ("attn_norm", "matches no matrix"),
        ("wte", "the embedding and the head cannot be adapted"),
        ("model.transformer.ff_out", "the embedding and the head cannot be adapted"),
    ],
)
def test_a_target_that_matches_nothing_is_an_error(target: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        plan_adapters(architecture("dense"), LoraConfig(targets=("q_proj", target)))
    assert str(caught.value).startswith(f"lora.targets: {target!r}: ")
    assert "\n" not in str(caught.value)


def test_the_scale() -> None:
    network = architecture("dense")
    assert plan_adapters(network, LoraConfig(rank=4, alpha=6)).scale == 1.5
    assert plan_adapters(network, LoraConfig(rank=4, alpha=6, rslora=True)).scale == 3


def test_a_base_is_known_by_its_weights(member: Path, tmp_path: Path) -> None:
    """In other files, too; not by its path."""
    tensors, network = official_tensors(read_index(member)), load_model(member)
    config = network.config
    export_checkpoint(tensors, config, member, tmp_path / "a", torch.float32, max_shard_size=20_000)
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 1
    mine = fingerprint(read_index(member))
    assert fingerprint(read_index(tmp_path / "a")) == mine
    changed = network_tensors(network)
    network.get_submodule(network.architecture.names.final_norm).weight.data[-1] += 1e-3
    export_checkpoint(changed, config, member, tmp_path / "b", torch.float32)
    assert fingerprint(read_index(tmp_path / "b")) != mine
