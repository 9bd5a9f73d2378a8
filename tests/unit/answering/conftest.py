"""A tiny network that says letters and blanks, with the demo's tokenizer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llada_sft.demo.data import make_tokenizer
from llada_sft.model import Network, NetworkConfig, build_model


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="session")
def model(tokenizer: Any) -> Network:
    config = NetworkConfig.from_size(
        d_model=16,
        n_layers=1,
        n_heads=2,
        mlp_hidden_size=24,
        max_sequence_length=64,
        vocab_size=len(tokenizer),
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model = build_model(config, seed=3)
    with torch.no_grad():
        # So that what it says depends on what it is asked, and is letters and blanks.
        for parameter in model.parameters():
            parameter.mul_(8.0)
        model.get_output_embeddings().weight[: tokenizer.convert_tokens_to_ids(" ")] = 0.0
    return model.eval()


@pytest.fixture(scope="session")
def model_dir(model: Network, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as an exported model."""
    folder = tmp_path_factory.mktemp("exported")
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    return folder
