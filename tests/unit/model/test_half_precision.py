"""Where bf16 rounds, and where it must not: numbers worked out here from the formulas."""

import math

import pytest
import torch

from llada_sft.model.layers.attention import rotary_table, rotate
from llada_sft.model.network import RMSNorm

BF16 = torch.bfloat16


def rounded(value: float) -> float:
    """Round to bf16, the way that a tensor of this type does it."""
    return torch.tensor(value, dtype=torch.float64).to(torch.float32).to(BF16).item()


def test_rmsnorm_rounds_before_the_product_with_its_weight() -> None:
    # x / sqrt(mean(x²) + eps) in fp32, rounded, times the weight, rounded.
    x = [rounded(one) for one in (0.3, -1.7, 2.2, 0.05, -0.9, 1.3, 3.1, -2.6)]
    weight = [rounded(one) for one in (1.1, 0.7, 1.3, 0.9, 1.7, 0.6, 1.9, 1.2)]
    eps = 1e-5
    scale = 1 / math.sqrt(sum(one * one for one in x) / len(x) + eps)
    expected = [rounded(rounded(one * scale) * gain) for one, gain in zip(x, weight, strict=True)]
    # Rounded once, after the product, or with a scale that was rounded, it would be another result.
    assert expected != [rounded(one * scale * gain) for one, gain in zip(x, weight, strict=True)]
    assert expected != [
        rounded(rounded(one * rounded(scale)) * gain) for one, gain in zip(x, weight, strict=True)
    ]
    norm = RMSNorm(len(x), eps).to(BF16)
    norm.weight.data = torch.tensor(weight, dtype=BF16)
    result = norm(torch.tensor([x], dtype=BF16))
    assert result.dtype == BF16 and result[0].tolist() == expected


def test_rmsnorm_takes_the_mean_square_in_fp32() -> None:
    # 1,000 ones and a large value: in bf16 the sum of squares would stop at 256.
    x = torch.ones(1001, dtype=BF16)
    x[0] = 16.0
    norm = RMSNorm(1001, 1e-5).to(BF16)
    norm.weight.data.fill_(1.0)
    mean = (1000 + 256) / 1001
    assert norm(x)[1].item() == rounded(1 / math.sqrt(mean + 1e-5))


@pytest.mark.parametrize("position", [3, 41, 500])
def test_queries_and_keys_turn_in_fp32(position: int) -> None:
    theta, size = 10000.0, 8
    half = size // 2
    x = [rounded(one) for one in (0.37, -1.21, 2.43, 0.83, -1.7, 0.61, 1.93, -0.29)]
    angles = [position * theta ** (-2 * i / size) for i in range(half)]

    def turned(cos: list[float], sin: list[float]) -> list[float]:
        first = [x[i] * cos[i] - x[i + half] * sin[i] for i in range(half)]
        second = [x[i + half] * cos[i] + x[i] * sin[i] for i in range(half)]
        return [rounded(one) for one in (*first, *second)]

    cos, sin = list(map(math.cos, angles)), list(map(math.sin, angles))
    expected = turned(cos, sin)
    # With cosines and sines in bf16 it would be another result.
    assert expected != turned(list(map(rounded, cos)), list(map(rounded, sin)))
    table = rotary_table(torch.tensor([position]), size, theta)
    assert table.dtype == torch.float32
    result = rotate(torch.tensor(x, dtype=BF16).view(1, 1, 1, size), table)
    assert result.dtype == BF16 and result.flatten().tolist() == expected
