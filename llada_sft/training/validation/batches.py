"""Validation rows as micro-batches that are masked once and for all."""

from llada_sft.data.examples.tokenizer import TokenIds
from llada_sft.data.steps.collate import UnmaskedBatch, pad
from llada_sft.diffusion.likelihood import validation_noise
from llada_sft.diffusion.noise import noise_key
from llada_sft.errors import DataError
from llada_sft.training.consensus import Consensus, Report
from llada_sft.training.noising import MicroBatch, noisy_micro_batch, response_masks


def validation_micro_batches(
    batches: list[UnmaskedBatch], ids: TokenIds, world_size: int, consensus: Consensus
) -> list[MicroBatch]:
    """Mask validation batches once and for all, the same at every validation.

    Args:
        batches: This rank's batches.
        ids: Special tokens.
        world_size: Number of ranks.
        consensus: Counts the examples of all ranks, and the most batches that a rank has.

    Returns:
        As many micro-batches on every rank, whose losses, averaged over ranks, sum to the mean of
        (1 / L_i) (L_i / l) Σ_masked CE over all examples.

    Raises:
        DataError: No rank has an example; the same on every rank.
    """
    counts = consensus.agree(Report(examples=sum(len(batch.keys) for batch in batches)))
    if counts.examples == 0:
        raise DataError(
            "data.validation: none of its rows makes an example (the files are empty, or the hook"
            " drops every row): fix it, or set data.validation=null"
        )
    missing = consensus.largest(len(batches)) - len(batches)
    padded = batches + [pad([], ids.eos_token_id)] * missing
    micro_batches = []
    for batch in padded:
        noises, divisors = [], []
        for example, response_mask in zip(batch.keys, response_masks(batch), strict=True):
            key = noise_key(0, 0, example.file, example.line, example.part)
            noises.append(validation_noise(response_mask, key, draw=0, num_draws=1))
            divisors.append(int(response_mask.sum()) * counts.examples / world_size)
        micro_batches.append(noisy_micro_batch(batch, noises, divisors, ids.mask_token_id))
    return micro_batches
