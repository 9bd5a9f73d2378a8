"""Puts kernels into a network: parts of it call other functions, with the same parameters."""

from llada_sft.model.kernels.choice import Kernels
from llada_sft.model.layers.basic import RMSNorm
from llada_sft.model.layers.block import Block
from llada_sft.model.layers.head import Head, TiedEmbedding
from llada_sft.model.network import Network


def import_kernels(kernels: Kernels) -> None:
    """Import the packages of kernels: not inside `zero.Init`, which changes torch."""
    if kernels.has_liger:
        from llada_sft.model.kernels import liger  # noqa: F401
    if kernels.attention == "flash_attn":
        from llada_sft.model.kernels import flash  # noqa: F401


def use_kernels(network: Network, kernels: Kernels) -> None:
    """Let a network compute with kernels; what is `torch` stays as it is."""
    network.flash_attention = kernels.attention == "flash_attn"
    if not kernels.has_liger:
        return
    from llada_sft.model.kernels import liger

    for module in network.modules():
        if isinstance(module, RMSNorm) and kernels.norm == "liger":
            module.compute = liger.liger_rms_norm
        elif isinstance(module, Block):
            if kernels.swiglu == "liger":
                module.swiglu = liger.liger_swiglu
            if kernels.rope == "liger":
                module.rotate = liger.liger_rotate
        elif isinstance(module, (Head, TiedEmbedding)) and kernels.loss == "liger":
            module.loss_kernel = liger.liger_cross_entropy
