"""Mutants of diffusion/ and model/."""

from tests.mutants.mutant import of_file

MUTANTS = (
    *of_file(
        "diffusion/blocks.py",
        "diffusion/test_blocks.py",
        ("moved = u + place / count", "moved = u", "the levels of blocks are not spread"),
        ("((u, uniform), (1 - u, 1 - uniform))", "((u, uniform), (u, uniform))", "twins of a band"),
    ),
    *of_file(
        "diffusion/generate.py",
        "diffusion/test_generate.py",
        (
            "eligible = (ids == mask_token_id) & (places < ends)",
            "eligible = ids == mask_token_id",
            "later blocks are uncovered too early",
        ),
    ),
    *of_file(
        "diffusion/generate.py",
        "model/test_parity.py",
        ("(cfg_scale + 1) * (logits", "cfg_scale * (logits", "guidance is weaker than its scale"),
    ),
    *of_file(
        "generation/selection.py",
        "generation/test_selection.py",
        (
            "torch.where(first_failure == last, num_candidates, first_failure)",
            "first_failure",
            "a last candidate that fails is not taken",
        ),
        (
            "numbers.clamp(min=1).minimum(num_candidates)",
            "numbers.minimum(num_candidates)",
            "a step may write nothing",
        ),
    ),
    *of_file(
        "generation/candidates.py",
        "generation/test_promises.py",
        (
            "self._tokens(without(logits, self._banned), eligible, rows)",
            "self._tokens(logits, eligible, rows)",
            "banned tokens and the mask token are written",
        ),
    ),
    *of_file(
        "generation/blocks.py",
        "generation/test_promises.py",
        ("is_open.any(1) & ~canvas.ended(rows)", "is_open.any(1)", "a row with its EOS continues"),
        (
            "(firsts - lead).clamp(min=0)",
            "firsts.clamp(min=0)",
            "a cached pass of Dream lacks the position before its block",
        ),
    ),
    *of_file(
        "generation/verify.py",
        "generation/test_verify.py",
        (
            "row.last = tokens, scores = row.known[_key(ids)]",
            "tokens, scores = row.last = row.last or row.known[_key(ids)]",
            "steps follow what was predicted at an older state",
        ),
    ),
    *of_file(
        "generation/llada2.py",
        "generation/test_llada2.py",
        (
            "(self._blocks[rows] * self._length - lead)",
            "(self._blocks[rows] * self._length)",
            "a block looks at the one before it as that was before its last tokens",
        ),
        (
            "asked & (tokens != ids) & (scores > threshold)",
            "asked & (scores > threshold)",
            "tokens that are right keep a block from being finished",
        ),
        (
            "number + (self._num_steps[rows] < rest).long()",
            "torch.full_like(rows, number)",
            "the rest of a block's shares is lost",
        ),
    ),
    *of_file(
        "model/layers/chunks.py",
        "model/test_blocks.py",
        (
            "torch.cat([key < query, key == query], dim=1)",
            "torch.cat([key <= query, key == query], dim=1)",
            "a noisy block sees the clean copy of itself",
        ),
        (
            "for start in reversed(range(0, x.shape[2], chunk)):",
            "for start in range(0, x.shape[2], chunk):",
            "noisy keys are taken for the clean ones of the next chunk",
        ),
    ),
    *of_file(
        "model/layers/flex.py",
        "model/test_flex.py",
        (
            "every = torch.zeros_like(every)",
            "every = every.clone()",
            "padding is seen in whole tiles",
        ),
    ),
    *of_file(
        "model/layers/cache.py",
        "model/test_cache.py",
        (
            "self.keys[rows, places], self.values[rows, places] = k, v",
            "self.keys[rows, places] = k",
            "old values are looked at with new keys",
        ),
        (
            "layer.keys[rows], layer.values[rows]",
            "layer.keys[: len(rows)], layer.values[: len(rows)]",
            "rows that are kept have the keys of others",
        ),
    ),
    *of_file(
        "diffusion/grid.py",
        "diffusion/test_grid.py",
        ("counted[chosen] += 1 / count", "pass", "all masks of a row hide the same tokens"),
        ("(part + within) / draws", "within", "all masks of a row are of one level"),
    ),
    *of_file(
        "diffusion/likelihood.py",
        "diffusion/test_likelihood.py",
        (
            'hashed("validation", key, draw)',
            'hashed("validation", key)',
            "all draws of an example mask alike",
        ),
        (
            "(draw + independent(key)) / num_draws",
            "independent(key) / num_draws",
            "all draws are of the lowest noise level",
        ),
    ),
    *of_file(
        "diffusion/strata.py",
        "diffusion/test_strata.py",
        (
            "1 + ((number + uniform) / num_strata * length).long()",
            "1 + ((number + uniform) / num_strata * (length - 1)).round().long()",
            "numbers of masked tokens are rounded, and not uniform",
        ),
        (
            "missing = 1 - count / stratum.num_all if stratum.num_all else 1.0",
            "missing = 1.0",
            "the standard error ignores how much of a stratum was drawn",
        ),
        (
            "num_draws - sum(shares.values())",
            "num_draws - length",
            "draws that small strata do not need are lost",
        ),
    ),
    *of_file(
        "diffusion/noise.py",
        "diffusion/test_noise.py",
        (
            "1 + math.floor(level * num_response)",
            "max(1, math.floor(level * num_response))",
            "fewer tokens are masked than drawn",
        ),
        (
            "weight=importance * num_response / len(part)",
            "weight=1.0",
            "masked tokens lose their weight",
        ),
        (
            "p = (1 - eps) * t + eps\n        masked",
            "p = t\n        masked",
            "the smallest masking probability is gone",
        ),
        (
            'hashed("noise", seed, epoch, file, row, part)',
            'hashed("noise", seed, epoch, file, row)',
            "examples of one row share their noise",
        ),
        ("(key >> 11) / (1 << 53)", "key / (1 << 64)", "a uniform number may be 1.0"),
        (
            "index * _GOLDEN_RATIO",
            "(index + 1) * _GOLDEN_RATIO",
            "the sequence of noise levels begins at its second element",
        ),
    ),
    *of_file(
        "diffusion/noise.py",
        "diffusion/test_twins.py",
        (
            "order[num_masked - 1 :]",
            "order[num_masked:]",
            "the second twin is the complement of the first, and may be empty",
        ),
        (
            "(1 - level, 1 - uniform)",
            "(1 - level, uniform)",
            "bernoulli's twins mask the same tokens first",
        ),
        (
            "1 / (num_response * chance)",
            "1 / density.at(level)",
            "the weight is that of the level, not of how many tokens are masked",
        ),
    ),
    *of_file(
        "diffusion/levels.py",
        "diffusion/test_levels.py",
        ("DECAY * old + unit * new", "old + unit * new", "old losses count for ever"),
        (
            "UNIFORM_PART + (1 - UNIFORM_PART) * root / mean_root",
            "root / mean_root",
            "the weights have no bound",
        ),
        ("if math.isfinite(loss):", "if True:", "a loss that is NaN ends the training"),
        ("loss * loss", "abs(loss)", "levels follow the mean of the loss, not of its square"),
    ),
    *of_file(
        "diffusion/objective.py",
        "diffusion/test_objective.py",
        (
            "F.cross_entropy(logits.float(), targets",
            "F.cross_entropy(logits, targets",
            "the loss of bf16 logits is computed in bf16",
        ),
    ),
    *of_file(
        "model/layers/attention.py",
        "model/test_half_precision.py",
        ("cos, sin = rotary\n", "cos, sin = rotary.to(x.dtype)\n", "the rotation is in bf16"),
    ),
    *of_file(
        "model/layers/attention.py",
        "model/test_parity.py",
        (
            "torch.cat([-second, first], dim=-1)",
            "torch.cat([second, -first], dim=-1)",
            "positions turn the other way",
        ),
    ),
    *of_file(
        "model/layers/attention.py",
        "model/test_packed.py",
        (
            "ends = F.pad(sums, (1, 0))",
            "ends = F.pad(sums, (0, 1))",
            "the kernel is given other bounds than those of the sequences",
        ),
        (
            "lengths = [int(length) for length in how]",
            "lengths = [sum(how)]",
            "packed examples look at each other",
        ),
    ),
    *of_file(
        "model/layers/head.py",
        "model/test_head.py",
        (
            "slopes.new_full((), -1.0)",
            "slopes.new_full((), 0.0)",
            "the head's gradient forgets the target",
        ),
        (
            "terms.confidence * is_right / counts",
            "terms.confidence / counts",
            "wrong predictions become more certain, too",
        ),
        (
            "slopes.mul_(factors).add_(",
            "slopes.add_(",
            "with a confidence loss, the gradient forgets the weights",
        ),
        (
            "weight.dtype if num_positions <= per_piece else torch.float32",
            "weight.dtype",
            "pieces of a bf16 gradient are summed in bf16",
        ),
        (
            "num_positions = max(1, piece_bytes // size)",
            "num_positions = 1 << 30",
            "all logits exist at one time",
        ),
    ),
    *of_file(
        "model/layers/activations.py",
        "model/test_activations.py",
        (
            'kept = checkpointing == "none" or (compiled and checkpointing == "selective")',
            "kept = True",
            "nothing is computed again",
        ),
    ),
    *of_file(
        "model/initialization.py",
        "model/test_initialization.py",
        (
            "range(owned.start // CHUNK * CHUNK, end, CHUNK)",
            "range(owned.start, end, CHUNK)",
            "random weights depend on the number of ranks",
        ),
        ("hashed(key, low)", "key", "all chunks of a parameter have the same noise"),
        (
            '0.0 if name.endswith(".bias") else 1.0',
            "0.0",
            "the gains of norms begin at zero",
        ),
        (
            "residual_std if network",
            "STD if network",
            "what writes to the residual stream is as large as the rest",
        ),
    ),
    *of_file(
        "model/layers/basic.py",
        "model/test_half_precision.py",
        (
            "return weight * normalised.to(x.dtype)",
            "return (weight * normalised).to(x.dtype)",
            "RMSNorm casts after the product with the weight",
        ),
    ),
    *of_file(
        "model/loading.py",
        "model/test_reading.py",
        (
            "(start + low) * itemsize",
            "(start * itemsize) + low",
            "a tensor's second piece is read from a wrong place",
        ),
    ),
    *of_file(
        "model/partition.py",
        "model/test_partition.py",
        (
            "partition[num_real:].zero_()",
            "pass",
            "the padding behind a parameter keeps what memory held",
        ),
        (
            "parameter.ds_zero_partition_rank * partition.numel()",
            "0 * partition.numel()",
            "every rank takes the first slice",
        ),
    ),
    *of_file(
        "model/layers/experts.py",
        "model/test_experts.py",
        (
            "if self.experts is None:",
            "if True:",
            "experts are chosen again where a block is computed again",
        ),
        (
            "else scores + bias",
            "else scores - bias",
            "the bias of the router works the other way",
        ),
        (
            "weights = counted.gather(-1, chosen)",
            "weights = counted.gather(-1, chosen).softmax(-1)",
            "what the chosen experts count is normalised again",
        ),
        (
            'counted = ranked if router.bias == "weights" else scores',
            "counted = ranked",
            "a bias that only chooses counts",
        ),
        (
            "if router.normalised and chosen.shape[1] > 1:",
            "if router.normalised:",
            "one expert alone always counts one",
        ),
        (
            "groups.topk(_BEST_OF_GROUP, dim=-1).values.sum(-1)",
            "groups.amax(-1)",
            "a group is as good as its best expert",
        ),
    ),
    *of_file(
        "model/layers/balance.py",
        "model/test_balance.py",
        (
            "both if real is None else both * real",
            "both",
            "padding counts in the losses of routers",
        ),
        (
            "world_size / (num_tokens * len(self.counts))",
            "1 / (num_tokens * len(self.counts))",
            "the losses of routers become smaller with the number of ranks",
        ),
    ),
)
