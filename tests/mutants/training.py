"""Mutants of training/."""

from tests.mutants.mutant import of_file

MUTANTS = (
    *of_file(
        "training/callbacks/checkpoint_saver.py",
        "training/callbacks/test_checkpoint_saver.py",
        (
            "self._positions |= batch.positions",
            "self._positions = batch.positions",
            "a checkpoint has the files of its last batch alone",
        ),
        (
            "self._feed.stop_agreed and not last",
            "self._feed.stop_agreed",
            "a stop at the very last step is no end",
        ),
        (
            '== "go_on" and not begun.last)',
            '== "go_on")',
            "a run whose last checkpoint failed counts as finished",
        ),
    ),
    *of_file(
        "training/checkpoint/changed_files.py",
        "training/checkpoint/test_changed_files.py",
        (
            "for of_rank in ranks for name in of_rank",
            "for of_rank in ranks[:1] for name in of_rank",
            "only files of rank 0 begin anew",
        ),
    ),
    *of_file(
        "training/checkpoint/folder.py",
        "training/checkpoint/test_folder.py",
        (
            "for step, path in complete[:-keep]:",
            "for step, path in complete[: -keep - 1]:",
            "a checkpoint too many is kept",
        ),
        (
            "    return sorted(\n        (int(match[1]), path)",
            "    return list(\n        (int(match[1]), path)",
            "the newest checkpoint is any",
        ),
        (
            "    for path in (*partial.iterdir(), partial):",
            "    for path in ():",
            "the names of a checkpoint are not on the disk when it is pointed to",
        ),
        (
            "        atomic.sync(partial.parent)\n        require_owner()\n        clean",
            "        require_owner()\n        clean",
            "older checkpoints are removed before the new one is on the disk",
        ),
    ),
    *of_file(
        "training/checkpoint/data_state.py",
        "training/checkpoint/test_changed_files.py",
        (
            "self.fingerprints.get(name, value) != value",
            "self.fingerprints.get(name) != value",
            "a file that was added counts as changed",
        ),
    ),
    *of_file(
        "training/checkpoint/checksums.py",
        "training/checkpoint/test_checksums.py",
        (
            "summed.update(read)",
            "summed.update(read[:1])",
            "only the first byte of each piece is summed",
        ),
    ),
    *of_file(
        "training/consensus.py",
        "training/test_consensus.py",
        (
            "if summed.failed and not report.failed:",
            "if summed.failed:",
            "the rank that failed reports another one",
        ),
        ("op=dist.ReduceOp.MAX, ", "", "the largest number of the ranks is their sum"),
    ),
    *of_file(
        "training/feed.py",
        "training/test_feed.py",
        (
            "self._moved |= local.positions",
            "self._moved = dict(local.positions)",
            "what a step without a batch has read is read again",
        ),
        (
            "self.stop_agreed |= counts.stop > 0",
            "self.stop_agreed |= counts.stop > 1",
            "a signal to one rank alone stops nothing",
        ),
        (
            "if not local.end_of_epoch or not counts.has_rows:",
            "if True:",
            "a rank does not wait for the others at its end of the epoch",
        ),
        (
            "self._pulse(phase, self._step - 1)",
            "self._pulse(phase, self._step)",
            "a step is reported that was not made",
        ),
    ),
    *of_file(
        "training/feed.py",
        "training/test_feed.py training/test_feed_rows.py",
        (
            "self._epoch_rows = RowCounts()\n",
            "pass\n",
            "an epoch's line counts the rows of the epochs before",
        ),
        (
            "self._consensus.agree(Report(failed=1,",
            "(Report(failed=1,",
            "a bad row on one rank leaves the others waiting",
        ),
        (
            "by_source = (0,) * self._num_sources",
            "by_source = ()",
            "a bad row on one rank of a mixture breaks the agreement",
        ),
    ),
    *of_file(
        "training/log/log_interval.py",
        "training/log/test_log_interval.py",
        ("/ 1e6 / world_size", "/ 1e6", "the share of waiting grows with the ranks"),
        ("seconds / world_size / self", "seconds / self", "MFU grows with the ranks"),
        ("self._work / world_size", "self._work", "balance grows with the ranks"),
        (
            "self._start += time.monotonic() - self._paused_at",
            "pass",
            "validation counts as time of training",
        ),
    ),
    *of_file(
        "training/log/signals.py",
        "training/log/test_signals.py",
        ("examples_of_rank / levels.num_examples", "1", "the variance depends on the batch's size"),
        (
            "loss.detach().double()[None] / world_size",
            "loss[None]",
            "the loss grows with the ranks",
        ),
    ),
    *of_file(
        "training/validation/answers.py",
        "training/validation/test_answers.py",
        (
            "_questions[rank::world_size]",
            "_questions[::world_size]",
            "all ranks answer the same prompts",
        ),
        ("0 < len(question.prompt_ids) <= longest_prompt", "True", "prompts that do not fit"),
    ),
    *of_file(
        "training/checkpoint/manifest.py",
        "training/checkpoint/test_manifest.py",
        (
            "if not content.keys() <= _OLDER_KEYS:",
            "if not content:",
            "a manifest that lost its own checksum is taken for an older one",
        ),
    ),
    *of_file(
        "training/log/metrics_csv.py",
        "training/log/test_metrics_csv.py",
        (
            "<= self._first_step",
            "< self._first_step",
            "a resumed run drops the row of its checkpoint's step",
        ),
        ("os.truncate(self._path, size)", "pass", "half a row spoils the next one"),
    ),
    *of_file(
        "training/log/metrics_rows.py",
        "training/log/test_metrics_csv.py",
        ('text[: text.rfind("\\n") + 1]', "text", "a number that was cut short is read"),
    ),
    *of_file(
        "training/validation/batches.py",
        "training/validation/test_batches.py",
        (
            "noise_key(0, 0, key.file, key.line, key.part)",
            "noise_key(0, 0, key.file, key.line)",
            "validation examples of one row share their masks",
        ),
        (
            "for _ in range(self._length - len(self._own)):",
            "for _ in range(0):",
            "ranks validate different numbers of micro-batches",
        ),
        ("first += len(items)", "pass", "the items of two sets have the same numbers"),
    ),
    *of_file(
        "training/validation/results.py",
        "training/validation/test_results.py",
        ("table[np.argsort(table[:, _ITEM])]", "table", "rows get the numbers of others"),
        (
            "own[:, _BOUND] * lengths",
            "own[:, _NATS]",
            "the bound is of the masked tokens alone",
        ),
    ),
    *of_file(
        "training/validation/best.py",
        "training/validation/test_best.py",
        ("value >= before.value", "value > before.value", "a step as good as the best replaces it"),
        ("state.misses < early.patience", "state.misses <= early.patience", "the end is late"),
        ("best=self._best_before", "best=None", "a failed write forgets all best steps"),
    ),
    *of_file(
        "training/checkpoint/folder.py",
        "training/checkpoint/test_folder.py",
        ("if step == best:", "if False:", "the best checkpoint is removed"),
    ),
    *of_file(
        "training/validation/callback.py",
        "training/validation/test_callback.py",
        (
            "if not self._stop_agreed():",
            "if True:",
            "a run that was told to stop validates on its way out",
        ),
        (
            "if trainer.global_step > self._best.state.last_step:",
            "if False:",
            "a resumed run lacks the validation of the step at which it was stopped",
        ),
    ),
    *of_file(
        "training/noising.py",
        "training/test_noising.py",
        (
            "index = number * self.world_size + self.rank",
            "index = number",
            "all ranks take the same noise levels",
        ),
        (
            "[length * counts.examples * self.draws / self.world_size",
            "[length * counts.examples * self.draws",
            "the loss is divided by the ranks twice",
        ),
        (
            "noise_key(self.seed, example.epoch,",
            "noise_key(self.seed, 0,",
            "all epochs mask the same tokens",
        ),
    ),
    *of_file(
        "training/noising.py",
        "training/test_twins.py",
        (
            "[length * counts.examples * self.draws / self.world_size",
            "[length * counts.examples / self.world_size",
            "the loss of twins is their sum, not their mean",
        ),
    ),
    *of_file(
        "training/masks/noisy_batch.py",
        "training/test_noising.py",
        (
            "self.coefficients.zero_()",
            "pass",
            "an example without a masked token has a loss",
        ),
    ),
    *of_file(
        "training/masks/noisy_batch.py",
        "training/test_twins.py",
        (
            "for key in dict.fromkeys(batch.keys)",
            "for key in batch.keys",
            "twins are named twice",
        ),
    ),
    *of_file(
        "training/masks/noisy_batch.py",
        "training/test_void_end.py",
        (
            "_certain[span] = noise.importance / by",
            "_certain[span] = 1 / by",
            "the EOS is not divided by the density of its level",
        ),
    ),
    *of_file(
        "training/masks/void_end.py",
        "training/test_void_end.py",
        ("length / num_void * certain", "length * certain", "many void tokens weigh more than few"),
        ("void_weight * length / num", "void_weight / num", "void tokens count 1/L"),
        (
            "masks[number][batch.lengths[number] - hidden :] = False",
            "pass",
            "the noise is drawn over the EOS, too",
        ),
    ),
    *of_file(
        "training/masks/parts.py",
        "training/test_block_noise.py",
        ("place += 1", "pass", "all blocks of an example have one noise level"),
        (
            "numbers += range(first, first + len(parts))",
            "numbers += [first] * len(parts)",
            "all blocks of an example are one draw",
        ),
    ),
    *of_file(
        "training/masks/two_halves.py",
        "training/test_block_loss.py",
        (
            "made.positions // width * width",
            "0 * made.positions",
            "what is learned of padded rows in blocks is in clean halves",
        ),
    ),
    *of_file(
        "training/masks/edits.py",
        "training/test_block_noise.py",
        (
            "torch.where(drawn == originals, following, drawn)",
            "drawn",
            "a token of a block is replaced by itself",
        ),
        (
            "predictions == mask_token_id",
            "predictions < 0",
            "a replaced token of a block is the mask token",
        ),
    ),
    *of_file(
        "training/masks/level_losses.py",
        "training/test_level_losses.py",
        ("self._sums.pop(step - _DELAY, None)", "self._sums.clear()", "a step's losses are lost"),
        ("if rank == 0:", "if True:", "after a resume each rank reports the sums of all"),
        (
            "LevelState(drawn_with,",
            "LevelState(self.statistics,",
            "a checkpoint keeps statistics of a step to come",
        ),
    ),
    *of_file(
        "training/nodes/findings.py",
        "training/nodes/test_findings.py",
        (
            "if 2 * len(by_value[most]) <= len(reporting):",
            "if 2 * len(by_value[most]) < len(reporting):",
            "one of two nodes is at fault, whichever",
        ),
        (
            "return nodes if 2 * len(nodes) < len(nodes_of(of)) else ()",
            "return nodes",
            "most of the nodes are at fault",
        ),
        (
            "if len(failed) == len(reporting) and name != GPUS:",
            "if len(failed) == len(reporting):",
            "a broken GPU of the only node is not an error",
        ),
    ),
    *of_file(
        "training/nodes/links.py",
        "training/nodes/test_links.py",
        (
            "best[one.rank] = max(best[one.rank], one.gb_per_s or 0.0)",
            "best[one.rank] = one.gb_per_s or 0.0",
            "the neighbours of a slow node are slow, too",
        ),
        (
            "last = [links[-1:]] if odd else []",
            "last: list[Any] = []",
            "a ring of three nodes has two links",
        ),
    ),
    *of_file(
        "training/nodes/own_time.py",
        "training/nodes/test_own_time.py",
        (
            "block.register_forward_hook(self._end, prepend=True)",
            "block.register_forward_hook(self._end)",
            "the release of the weights is a rank's own time",
        ),
    ),
    *of_file(
        "training/nonfinite.py",
        "training/test_nonfinite.py",
        (
            "loss.isfinite(), 1.0, math.nan",
            "loss.isnan().logical_not(), 1.0, math.nan",
            "a step with an infinite loss is made",
        ),
        ("if not is_finite", "if is_finite", "the rows that are named are the good ones"),
        ('if self._policy == "stop":', 'if self._policy == "skip":', "the policies are exchanged"),
    ),
    *of_file(
        "training/log/step_journal.py",
        "training/log/test_step_journal.py",
        ("self._longest_s = max(", "self._longest_s = min(", "the longest step is the shortest"),
        (
            "self._last_end, self._longest_s = now, 0.0",
            "self._last_end = now",
            "a slow step is reported at every later checkpoint",
        ),
    ),
    *of_file(
        "training/checkpoint/resume.py",
        "training/checkpoint/test_resume.py",
        ("if not findings:", "if not mine:", "ranks choose different checkpoints"),
        (
            "len(others) < int(",
            "len(others) <= int(",
            "a config of another network has its checkpoints set aside as damaged",
        ),
        (
            "position._replace(examples=0, tokens=0)",
            "position._replace(examples=0)",
            "other ranks share out by the tokens of the old ones",
        ),
    ),
    *of_file(
        "training/strategy.py",
        "training/test_strategy.py",
        (
            '"communication_data_type": config.reduce_dtype',
            '"communication_data_type": "bf16"',
            "gradients are sent in bf16",
        ),
        (
            "engine.backward(loss, scale_wrt_gas=False)",
            "engine.backward(loss)",
            "the loss is divided twice",
        ),
        (
            "accumulation_boundary(last)",
            "accumulation_boundary(True)",
            "every micro-batch is a step",
        ),
        ("save_latest=False", "save_latest=True", "a failed write leaves the others in a barrier"),
        (
            "self.shard_writer.begin(background)",
            "pass",
            "the error of a checkpoint spoils the next",
        ),
    ),
    *of_file(
        "training/checkpoint/verify.py",
        "training/checkpoint/test_verify.py",
        (
            ".st_size) != size:",
            ".st_size) < size:",
            "a file of an older checkpoint that has grown is accepted",
        ),
        (
            '"code" if proved else "damaged"',
            '"damaged" if proved else "code"',
            "damage is taken for code, and code for damage",
        ),
        (
            "int(of_rank[1] or 0) % self.world_size == self.rank",
            "int(of_rank[1] or 0) == self.rank",
            "fewer ranks examine only their own files",
        ),
        (
            "if part.network and held != due:",
            "if part.network and held < due:",
            "the states of a larger network are accepted",
        ),
    ),
    *of_file(
        "training/checkpoint/host_copies.py",
        "training/checkpoint/test_host_copies.py",
        (
            "return copy.deepcopy(state, memo)",
            "return state",
            "what is written is not what was there at the step",
        ),
        (
            "        self._lent.append(buffer)",
            "        pass",
            "the memory of copies is taken again at each save",
        ),
    ),
    *of_file(
        "training/checkpoint/shard_writer.py",
        "training/checkpoint/test_shard_writer.py",
        (
            "atomic.sync_file(file)",
            "pass",
            "a shard is not on the disk when its checkpoint is complete",
        ),
        (
            "self.error = self.error or failed_write",
            "self.error = failed_write",
            "a later error hides the first",
        ),
    ),
    *of_file(
        "training/ranks.py",
        "training/test_ranks.py",
        (
            '"LOCAL_RANK": str(device_ordinal(device, placement))',
            '"LOCAL_RANK": str(placement.local_rank)',
            "a GPU is asked for that the task does not see",
        ),
        (
            "    _set_default_timeout(timeout)\n",
            "",
            "groups that are made later have torch's timeout",
        ),
    ),
    *of_file(
        "config/schema.py",
        "training/test_ranks.py",
        (
            "self.train.hang_timeout_s + self.train.hang_grace_s +",
            "self.train.hang_timeout_s +",
            "a collective gives up in a long phase before the watchdog",
        ),
    ),
    *of_file(
        "training/schedule/plan.py",
        "training/schedule/test_plan.py",
        (
            "later_epochs * agreed.epoch_steps",
            "later_epochs",
            "the steps of later epochs are not counted",
        ),
        (
            "self._basis.run_epochs - 1 - epoch",
            "self._basis.run_epochs - epoch",
            "an epoch too many is counted",
        ),
        (
            "else min(steps_left, limit)",
            "else limit",
            "rows that end before max_steps are not seen",
        ),
        (
            "kept.basis == self._basis and not self._data_changed",
            "False",
            "the schedule of a checkpoint is planned anew at each resume",
        ),
        (
            "kept.steps_left * self._batch_ratio(kept.basis)",
            "kept.steps_left",
            "steps before a longer training are not counted in today's batch",
        ),
        (
            "point = kept.point.continued(steps_left)",
            "total = step + steps_left; "
            "point = Point(step, total, descent_at(self._optim, step, total))",
            "the rate jumps on other ranks",
        ),
        (
            "known = same and not data_changed and",
            "known = same and",
            "changed files are not sampled again",
        ),
    ),
    *of_file(
        "training/schedule/learning_rate.py",
        "training/schedule/test_learning_rate.py",
        (
            "if steps_left <= 1:",
            "if steps_left <= 0:",
            "the last step is not the end of the schedule",
        ),
        (
            "descent += (1 - descent) / steps_left",
            "descent += 1 / steps_left",
            "the rate falls too fast",
        ),
        (
            "if descent > 0 or _falls",
            "if _falls",
            "a fall that has begun may pause",
        ),
        (
            "_fall_begins(config, self.total) < self.total",
            "True",
            "a constant rate falls at the last step",
        ),
    ),
    *of_file(
        "training/consensus.py",
        "training/test_consensus.py",
        (
            '"steps_left", ',
            "",
            "the ranks' ways to the end are added up",
        ),
    ),
    *of_file(
        "training/nonfinite.py",
        "training/test_nonfinite.py",
        (
            "if step == self.last + 1 else 1",
            "if self.last else 1",
            "skipped steps need not be in a row",
        ),
        (
            "is_last and self.skipped.total == step",
            "False",
            "a run that made no step has finished",
        ),
    ),
    *of_file(
        "training/module.py",
        "training/test_module.py",
        ('group["lr"] = rate', 'group["initial_lr"] = rate', "a step's rate is not the schedule's"),
        (
            "in optimizer.param_groups:",
            "in optimizer.param_groups[:1]:",
            "the gains of norms keep the rate of the start",
        ),
        (
            "last = batch is batches[-1]",
            "last = batch is batches[0]",
            "the first micro-batch closes a step",
        ),
        (
            "self._report_skipped_step(step + 1,",
            "self._report_skipped_step(step,",
            "a step that was left out has the number before",
        ),
        (
            "torch.stack(losses).sum(), rate",
            "losses[-1], rate",
            "the logged loss is that of the last micro-batch",
        ),
    ),
    *of_file(
        "training/module.py",
        "training/test_build_network.py",
        (
            'gains, "weight_decay": 0.0}',
            'gains, "weight_decay": weight_decay}',
            "the gains of norms are decayed",
        ),
    ),
)
