"""Operations by hand, and the rates of GPUs by the names that CUDA gives them."""

import pytest

from llada_sft.data.steps.collate import EQUAL_TOKENS, pairs_in_blocks
from llada_sft.model.configuration import NetworkConfig
from llada_sft.model.families import llada
from llada_sft.model.flops import needed_operations, peak_rate
from llada_sft.model.layers.blocks import Blocks
from tests.unit.model.dense_blocks import dense_mask


def test_operations_of_a_small_network_by_hand() -> None:
    sizes = NetworkConfig(
        llada.FAMILY.config_json(d_model=4, n_layers=2, n_heads=2, mlp_hidden_size=8, vocab_size=10)
    ).architecture
    # A block: four matrices of 4 x 4, three of 4 x 8, two norms of 4.
    blocks = 2 * (4 * 16 + 3 * 32 + 2 * 4)
    # Examples of 3 and 5 tokens, 2 of them masked.
    found = needed_operations(sizes, tokens=8, squares=9 + 25, masked=2)
    assert found == 6 * blocks * 8 + 12 * 2 * 4 * 34 + 6 * 10 * 4 * 2

    # Of adapters with 7 parameters; what is frozen has no gradient.
    found = needed_operations(sizes, tokens=8, squares=9 + 25, masked=2, adapters=7)
    assert found == (4 * blocks + 6 * 7) * 8 + 12 * 2 * 4 * 34 + 4 * 10 * 4 * 2


def test_the_block_objective_needs_both_halves_and_the_pairs_that_see_each_other() -> None:
    sizes = NetworkConfig().architecture
    # Blocks of 4, 4 and 1: 4 · 4 + 4 · 8 + 1 · 9 pairs in each half.
    pairs = pairs_in_blocks(9, 4)
    assert pairs == 2 * (16 + 32 + 9)
    found = needed_operations(sizes, tokens=9, squares=pairs, masked=3, halves=2)
    as_one_row = needed_operations(sizes, tokens=18, squares=pairs, masked=3)
    assert found == as_one_row
    assert found < needed_operations(sizes, tokens=18, squares=18**2, masked=3)


@pytest.mark.parametrize("length", [1, 7, 8, 20, 31])
@pytest.mark.parametrize("block_length", [1, 4, 8, 40])
def test_pairs_are_those_of_the_mask(length: int, block_length: int) -> None:
    mask = dense_mask(Blocks(block_length, doubled=True), (length,))
    assert pairs_in_blocks(length, block_length) == mask.sum()


def test_attention_of_the_8b_costs_as_much_as_its_matrices_at_26600_tokens() -> None:
    """The number by which micro-batches are weighed against each other."""
    sizes, length = NetworkConfig().architecture, EQUAL_TOKENS
    matrices = needed_operations(sizes, length, 0, 0)
    attention = needed_operations(sizes, 0, length**2, 0)
    assert attention / matrices == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA H20", None),
        ("NVIDIA GB200", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_rates_of_known_gpus(name: str, rate: float | None) -> None:
    assert peak_rate(name) == rate
