"""What MFU and the peak of memory are worked out from."""

import pytest
import torch

from llada_sft.model.configuration import NetworkConfig
from llada_sft.model.families import llada
from llada_sft.model.flops import needed_operations
from llada_sft.training.consensus import Report
from llada_sft.training.log.efficiency import Efficiency, peak_memory

SIZES = NetworkConfig(
    llada.FAMILY.config_json(d_model=4, n_layers=2, n_heads=2, mlp_hidden_size=8, vocab_size=10)
).architecture


def test_half_of_the_response_counts_as_masked() -> None:
    counts = Report(tokens=8, squares=34, response_tokens=6, all_tokens=99)
    assert Efficiency(SIZES, None).needed(counts) == needed_operations(SIZES, 8, 34, 3)
    # With pairs, tokens and squares have both twins; the response has its tokens once.
    assert Efficiency(SIZES, None, draws=2).needed(counts) == needed_operations(SIZES, 8, 34, 6)
    # In blocks of 2 it runs on noisy and clean tokens, which see L (L + 2) pairs.
    blocks = Efficiency(SIZES, None, block_length=2)
    assert blocks.needed(counts) == needed_operations(SIZES, 8, 34 + 2 * 8, 3, halves=2)


def test_only_a_known_gpu_that_trains_in_bf16_has_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    cuda, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert Efficiency.of(SIZES, cuda, "bf16").peak == 989e12
    assert Efficiency.of(SIZES, cuda, "fp32").peak is None
    assert Efficiency.of(SIZES, cpu, "bf16").peak is None


def test_the_most_memory_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, resident = peak_memory()
    assert gpu == 0
    # With torch imported: more than 50 MB, less than 100 GB.
    assert 50e6 < resident < 100e9
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 123)
    assert peak_memory()[0] == 123
