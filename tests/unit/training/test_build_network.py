"""The network that a config asks for, and what of it is decayed."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from llada_sft.config.schema import Config
from llada_sft.config.sections.model import LoraConfig, ModelConfig, ModelSize
from llada_sft.data.examples.tokenizer import TokenIds
from llada_sft.demo.data import make_tokenizer
from llada_sft.errors import CheckpointError, ConfigError, DataError
from llada_sft.model import NetworkConfig, adapter_plan
from llada_sft.model.adapter_plan import plan_adapters
from llada_sft.model.adapters import import_packages
from llada_sft.model.families import llada2, llada_moe
from llada_sft.model.layers.balance import Balance
from llada_sft.model.layers.kept_bytes import most_kept
from llada_sft.training import build_network as build_network_module
from llada_sft.training.build_network import (
    build_balance,
    build_network,
    checkpointing_line,
    checkpointing_of,
    compiles,
    resolve_network,
    token_ids,
)
from llada_sft.training.module import parameter_groups

SIZE = ModelSize(d_model=16, n_layers=2, n_heads=2, mlp_hidden_size=24, max_sequence_length=32)
RANDOM = {"init": "random", "size": SIZE}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    make_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def random_network(directory: Path, **more: Any) -> tuple[ModelConfig, NetworkConfig]:
    config = ModelConfig(path=str(directory), init="random", size=SIZE, **more)
    return config, resolve_network(config)


def test_a_random_network_takes_its_ids_from_the_tokenizer(directory: Path) -> None:
    _, network = random_network(directory)
    vocabulary = make_tokenizer().get_vocab()
    eos, mask = vocabulary["<|endoftext|>"], vocabulary["<|mdm_mask|>"]
    assert token_ids(network) == TokenIds(len(vocabulary), eos, mask, pad_token_id=eos)
    found = network.architecture
    assert (found.width, found.num_layers, found.max_length) == (16, 2, 32)


def test_a_tokenizer_without_eos(directory: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(directory)
    with pytest.raises(DataError) as caught:
        random_network(directory)
    assert str(caught.value) == (
        f"{directory}: tokenizer has no EOS token; name it in tokenizer_config.json ('eos_token')"
    )


def test_a_checkpoint_without_eos(directory: Path) -> None:
    _, network = random_network(directory)
    network.changed(eos_token_id=None).save_pretrained(directory)
    with pytest.raises(CheckpointError) as caught:
        resolve_network(ModelConfig(path=str(directory)))
    expected = f"{directory}/config.json: eos_token_id: must be given, got null"
    assert str(caught.value) == expected


def test_a_pretrained_network_is_described_by_its_own_config(directory: Path) -> None:
    _, network = random_network(directory)
    network.save_pretrained(directory)
    found = resolve_network(ModelConfig(path=str(directory)))
    assert token_ids(found) == token_ids(network)
    assert found.architecture.width == 16


def test_weights_depend_on_the_seed_alone(directory: Path) -> None:
    config, network = random_network(directory, activation_checkpointing="none")
    states = [build_network(config, network, seed).state_dict() for seed in (1, 1, 2)]
    same = [torch.equal(states[0][name], states[1][name]) for name in states[0]]
    other = [torch.equal(states[0][name], states[2][name]) for name in states[0]]
    assert all(same)
    assert not all(other)


@pytest.mark.parametrize(
    ("batch", "tokens"),
    [
        ({"data": {"batching": "packed", "max_tokens": 64, "end": 1}}, 64),
        ({"train": {"micro_batch_size": 3}}, 96),
    ],
)
def test_a_budget_chooses_for_each_block(
    directory: Path, batch: dict[str, dict[str, Any]], tokens: int
) -> None:
    def config(kind: str, gb: float | None = None) -> Config:
        size = SIZE.model_copy(update={"n_layers": 3})
        model = {"path": str(directory), **RANDOM, "size": size, "activation_checkpointing": kind}
        data = {"train": "d", "max_length": 32, **batch.get("data", {})}
        sections = {"run": {"name": "a"}, "model": model | {"activation_gb": gb}, "data": data}
        train = {"precision": "fp32", **batch.get("train", {})}
        return Config.model_validate({**sections, "train": train})

    network = resolve_network(config("none").model)
    assert checkpointing_of(config("selective"), network, False) == ["selective"] * 3
    assert checkpointing_line(config("selective"), network, ["selective"] * 3) is None
    assert checkpointing_of(config("auto", 1.0), network, False) == ["none"] * 3
    # Of each token: what is kept of each block, and the rest of one that is computed again.
    kept = most_kept(network.architecture, ["selective", "full", "full"], 4)
    enough = config("auto", tokens * kept / 1e9)
    kinds = checkpointing_of(enough, network, False)
    assert kinds == ["selective", "full", "full"]
    model = build_network(enough.model, network, 0, checkpointing=kinds)
    assert model.checkpointing == kinds
    line = checkpointing_line(enough, network, kinds) or ""
    assert "auto: blocks: 1 selective, 2 full; they keep at most" in line
    assert f"a micro-batch of {tokens} tokens" in line
    little = config("auto", 1e-9)
    kinds = checkpointing_of(little, network, False)
    assert kinds == ["full"] * 3
    line = checkpointing_line(little, network, kinds) or ""
    assert line.endswith("more than is given: there is nothing more to compute again")


def test_matrices_are_decayed_and_gains_are_not(directory: Path) -> None:
    config, network = random_network(directory)
    model = build_network(config, network, seed=0)
    decayed, kept = parameter_groups(model, weight_decay=0.3)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [
        {names[id(parameter)] for parameter in group["params"]}  # type: ignore[attr-defined]
        for group in (decayed, kept)
    ]
    assert groups[0] | groups[1] == set(names.values())
    assert groups[0] & groups[1] == set()
    assert {name.split(".")[-2] for name in groups[1]} == {"attn_norm", "ff_norm", "ln_f"}


@pytest.mark.parametrize(
    ("chosen", "hooks_inside", "device", "expected"),
    [
        ("on", False, "cpu", True),
        ("off", False, "cuda", False),
        ("auto", False, "cpu", False),
        ("auto", True, "cuda", False),
        ("auto", False, "cuda", True),
    ],
)
def test_which_blocks_are_compiled(
    monkeypatch: pytest.MonkeyPatch,
    chosen: Literal["auto", "on", "off"],
    hooks_inside: bool,
    device: str,
    expected: bool,
) -> None:
    monkeypatch.setattr(build_network_module, "find_spec", lambda name: name == "triton")
    config = ModelConfig(path="m", compile=chosen)
    assert compiles(config, hooks_inside, torch.device(device)) is expected
    of_dora = compiles(config, hooks_inside, torch.device(device), dora=True)
    assert of_dora is (expected and chosen == "on")
    if chosen != "on":
        with_kernel = config.model_copy(update={"norm_kernel": "liger"})
        assert not compiles(with_kernel, hooks_inside, torch.device(device))


@pytest.mark.parametrize("weight", [None, 0.5, 0.0])
def test_the_weight_of_the_balance(
    directory: Path, weight: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, float]] = []

    def made(self: Balance, experts: object, balance_weight: float, z_weight: float) -> None:
        seen.append((balance_weight, z_weight))

    monkeypatch.setattr(Balance, "__init__", made)
    config = ModelConfig(path=str(directory), router_balance_weight=weight, router_z_weight=0.25)
    network = NetworkConfig(llada_moe.FAMILY.config_json(router_aux_loss_coef=0.02))
    assert build_balance(config, network) is not None
    assert seen == [(0.02 if weight is None else weight, 0.25)]


def test_a_network_without_experts_has_nothing_to_balance(directory: Path) -> None:
    config, network = random_network(directory)
    assert build_balance(config, network) is None
    config, network = random_network(directory, router_z_weight=0.25)
    with pytest.raises(ConfigError, match=r"^model\.router_z_weight: the network has no experts"):
        build_balance(config, network)


def test_a_router_with_sigmoids_has_no_loss_by_default(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = NetworkConfig(llada2.FAMILY.config_json(**llada2.MINI))
    seen: list[float] = []
    monkeypatch.setattr(Balance, "__init__", lambda _, experts, *weights: seen.extend(weights))
    for weight in (None, 0.1):
        build_balance(ModelConfig(path=str(directory), router_balance_weight=weight), network)
    assert seen == [0.0, 0.0, 0.1, 0.0]
    with pytest.raises(ConfigError) as caught:
        build_balance(ModelConfig(path=str(directory), router_z_weight=0.25), network)
    assert str(caught.value) == (
        "model.router_z_weight: the router has sigmoids and no softmax, got 0.25; set it to 0"
    )


def test_of_adapters_a_and_b_decay_and_magnitudes_do_not(directory: Path) -> None:
    config, network = random_network(directory)
    adapters = plan_adapters(network.architecture, LoraConfig(dora=True))
    model = build_network(config, network, seed=0, adapters=adapters)
    decayed, others = (
        {name for name, p in model.named_parameters() if any(p is one for one in group["params"])}
        for group in parameter_groups(model, 0.1)
    )
    assert decayed | others == adapters.parameter_shapes().keys()
    assert {name.split(".lora_")[1].partition(".")[0] for name in decayed} == {"A", "B"}
    assert {name.split(".lora_")[1].partition(".")[0] for name in others} == {"magnitude_vector"}
    # DeepSpeed takes no empty group.
    adapters = plan_adapters(network.architecture, LoraConfig())
    model = build_network(config, network, seed=0, adapters=adapters)
    assert len(parameter_groups(model, 0.1)) == 1


def test_without_its_packages_lora_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_plan, "find_spec", lambda name: None)
    assert adapter_plan.missing_packages(LoraConfig(base="nf4")) == [
        "lora: the package peft is not installed: run  pip install 'llada-sft[lora]'",
        "lora.base: nf4: the package bitsandbytes is not installed:"
        " run  pip install 'llada-sft[nf4]'  or set lora.base=full",
    ]
    with pytest.raises(ConfigError, match="the package peft is not installed"):
        import_packages(LoraConfig())
