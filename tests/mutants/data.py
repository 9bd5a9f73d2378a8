"""Mutants of data/."""

from tests.mutants.mutant import of_file

MUTANTS = (
    *of_file(
        "data/steps/prefetch.py",
        "data/steps/test_prefetch.py",
        (
            "signal.SIGUSR2, signal.SIGTERM, signal.SIGINT})",
            "signal.SIGUSR2, signal.SIGINT})",
            "TERM ends the background process",
        ),
    ),
    *of_file(
        "data/storage/cache.py",
        "data/storage/test_cache.py",
        (
            "_size(text) == text_size",
            "_size(text) is not None",
            "a text in the cache that was cut short is used",
        ),
        (
            "if _size(target) != shard.size",
            "if _size(target) is None",
            "a fetched object that was cut short is used",
        ),
        (
            "status.st_size, status.st_mtime_ns, status.st_ctime_ns",
            "status.st_size, status.st_mtime_ns, 0",
            "a file that was copied over with its old times is not noticed",
        ),
        (
            "times[1] > _SETTLED_NS",
            "times[1] > 0",
            "the index of a file that still changes is kept",
        ),
        (
            "atomic.sync_file(out)",
            "pass",
            "a text is moved into the cache before it is on the disk",
        ),
    ),
    *of_file(
        "data/steps/collate.py",
        "data/steps/test_collate.py",
        ("real[row, used:] = example.grows", "real[row, used:] = True", "padding is attended to"),
        (
            "response_mask[row, used:] = example.grows",
            "response_mask[row, used:] = False",
            "the tail up to the longest example is not learned",
        ),
    ),
    *of_file(
        "data/examples/row_counts.py",
        "data/examples/test_row_counts.py",
        ("self.skipped + other.skipped", "self.skipped", "skipped examples are not summed"),
    ),
    *of_file(
        "data/rows/position.py",
        "data/steps/test_dataset.py data/steps/test_packing.py "
        "training/checkpoint/test_changed_files.py",
        (
            "position.start_of_epoch(position.epoch)._replace(pending=())",
            "position.start_of_epoch(position.epoch)",
            "a file that begins anew keeps the examples that wait",
        ),
    ),
    *of_file(
        "data/steps/dataset.py",
        "data/steps/test_packing.py",
        (
            "pending.sort(key=lambda each: each[0].place)",
            "pass",
            "examples that wait come back in another order",
        ),
        (
            "if part.part == example.part",
            "if part.part >= example.part",
            "examples that were trained wait again",
        ),
    ),
    *of_file(
        "data/steps/dataset.py",
        "data/steps/test_packing.py data/steps/test_mixture.py",
        (
            "parts = encode(row, example.epoch)",
            "parts = encode(row, 0)",
            "examples that wait are encoded as of the first epoch",
        ),
    ),
    *of_file(
        "data/steps/dataset.py",
        "data/steps/test_dataset.py",
        (
            "stream.start_positions(epoch + 1), []",
            "stream.start_positions(epoch), []",
            "positions name the epoch before",
        ),
    ),
    *of_file(
        "data/steps/dataset.py",
        "data/steps/test_many_files.py data/steps/test_packing.py",
        (
            "self._waited - moved.keys()",
            "set[str]()",
            "a step does not say that the last example of a file waits no more",
        ),
    ),
    *of_file(
        "data/steps/one_epoch.py",
        "data/steps/test_many_files.py",
        (
            "self._moved.clear()",
            "pass",
            "a step carries all files that were ever read",
        ),
    ),
    *of_file(
        "data/steps/dataset.py",
        "data/steps/test_mixture.py data/steps/test_dataset.py",
        (
            'self._config.mix_by == "tokens"',
            'self._config.mix_by != "tokens"',
            "shares are reported in the wrong unit",
        ),
    ),
    *of_file(
        "data/steps/local_step.py",
        "data/steps/test_dataset.py training/test_feed.py",
        (
            "for batch in self.micro_batches if batch.keys",
            "for batch in self.micro_batches",
            "empty micro-batches count as tokens",
        ),
    ),
    *of_file(
        "data/rows/file_draws.py",
        "data/rows/test_file_draws.py",
        (
            "            sums[node] -= 1\n            node *= 2",
            "            node *= 2",
            "the draw forgets what was drawn before",
        ),
    ),
    *of_file(
        "data/examples/answer_end.py",
        "data/examples/test_answer_end.py",
        ("room - self.fewest_tokens", "room", "an example is longer than max_length"),
        (
            'hashed("end", row_key, part)',
            'hashed("end", row_key)',
            "all parts end in as many tokens",
        ),
        ("num_hidden=len(ids)", "num_hidden=0", "void tokens are not masked"),
    ),
    *of_file(
        "data/examples/encode.py",
        "data/examples/test_encode.py",
        ("random.seed(key)", "pass", "what a hook draws differs when a row is read again"),
        (
            "self.max_length - tail",
            "self.max_length",
            "an example with its tail is longer than max_length",
        ),
        (
            'begin = len(mask) - room if policy == "clip_prompt"',
            'begin = len(mask) - room if policy == "clip_response"',
            "examples are cut at the wrong end",
        ),
        ("or len(learned) == 0", "", "an example keeps no token of its response"),
        (
            "and not self.eos_after_cut",
            "",
            "no answer that is cut has an EOS, even if that is asked for",
        ),
        (
            "if was_cut and self._cuts_response(mask, keep)",
            "if was_cut",
            "an example whose prompt is cut has no EOS either",
        ),
        (
            "else int(learned[-1]) + 1)",
            "else begin + room)",
            "a question whose answer is cut off stays, and EOS follows it",
        ),
        (
            "dropped_by_hook=int(not items)",
            "dropped_by_hook=0",
            "rows that the hook drops are not counted",
        ),
        (
            "tail = 0 if noisy is not None or not piece.ends else self.answer_end.fewest_tokens",
            "tail = self.answer_end.fewest_tokens",
            "a tail is added to what the hook corrupted itself",
        ),
        (
            "np.repeat(weights[-1:], more)",
            "np.ones(more, np.float32)",
            "the tail of a weighted answer weighs 1",
        ),
    ),
    *of_file(
        "data/examples/hook_output.py",
        "data/examples/test_encode.py data/test_misread_rows.py",
        (
            "ids.view(np.uint64) >= vocab_size",
            "ids.view(np.uint64) > vocab_size",
            "an id just outside the vocabulary is accepted",
        ),
        (
            "np.count_nonzero(is_mask_token & mask):",
            "np.all(is_mask_token[mask]):",
            "the mask token is learned beside other tokens",
        ),
    ),
    *of_file(
        "data/examples/encode.py",
        "data/examples/test_encode.py data/steps/test_dataset.py",
        ("            part=part,", "            part=0,", "all examples of a row are its first"),
    ),
    *of_file(
        "data/steps/one_epoch.py",
        "data/steps/test_one_epoch.py",
        (
            "self._read += self.epoch == 0",
            "self._read += 1",
            "the second epoch's rows count as new for the share of bad rows",
        ),
        (
            "self._quarantine.judge(self._read, end_of_epoch=True)",
            "self._quarantine.judge(self._read)",
            "a dataset of few rows is never judged",
        ),
        (
            "if done.part == 0:",
            "if done.part >= 0:",
            "a row that was begun before a checkpoint counts twice",
        ),
        (
            "self._quarantine.add(error, self.epoch, done.row)",
            "self._quarantine.add(error, self.epoch, done.row + 1)",
            "a bad row is written down at the place of the next",
        ),
    ),
    *of_file(
        "data/steps/one_epoch.py",
        "data/steps/test_dataset.py",
        (
            "done.after_row())\n            self._read",
            "done._replace(part=0))\n            self._read",
            "a row without an example is read again",
        ),
    ),
    *of_file(
        "data/rows/shard_reader.py",
        "data/rows/test_stream.py data/storage/test_corruption.py",
        (
            "if file_size != self.index.size",
            "if file_size < self.index.size",
            "a file that has grown is not noticed",
        ),
        ("newline == size - 1 or", "newline >= 0 or", "lines that have moved are not noticed"),
    ),
    *of_file(
        "data/storage/line_index.py",
        "data/storage/test_cache.py",
        (
            'return f"{size}-{checksum:08x}"',
            'return f"{size}-{size:08x}"',
            "a compressed file's fingerprint does not see its content",
        ),
    ),
    *of_file(
        "data/steps/mixture.py",
        "data/steps/test_mixture.py",
        (
            "self._counts += self._rows.take_counts()",
            "self._rows.take_counts()",
            "the last rows of a source's epoch are not counted",
        ),
        (
            "if self._rows.epoch + 1 >= self._epochs:",
            "if self._rows.epoch + 1 > self._epochs:",
            "a source that is done is at the start of an epoch that it does not make",
        ),
        (
            "while self._rows.epoch < self._epochs:",
            "while True:",
            "a source makes an epoch too many where its epochs were lowered",
        ),
        (
            "chosen = min(unfinished",
            "chosen = max(unfinished",
            "the source that has given most gives again",
        ),
        (
            "[self._unit] / pair[0].weight",
            "[self._unit] * pair[0].weight",
            "a higher weight gives a smaller share",
        ),
        (
            'self.given["tokens"] += num_tokens',
            'self.given["tokens"] += 1',
            "a mixture by tokens counts examples",
        ),
        (
            '"tokens": sum(position.tokens for position in positions.values())',
            '"tokens": 0',
            "a resumed mixture forgets what was given",
        ),
        (
            "position.epoch > self._rows.epoch\n                else position.start",
            "position.epoch >= self._rows.epoch\n                else position.start",
            "the files of a source do not begin its second epoch",
        ),
    ),
    *of_file(
        "data/rows/order.py",
        "data/rows/test_order.py",
        (
            "np.uint64(-(-num_rows // low))",
            "np.uint64(num_rows // low)",
            "an order leaves rows out",
        ),
        (
            "numbers >= self._num_rows).any()",
            "numbers > self._num_rows).any()",
            "an order has a row too many",
        ),
    ),
    *of_file(
        "data/steps/packing.py",
        "data/steps/test_packing.py",
        ("if length <= room", "if length < room", "an example that just fits is not packed"),
        ("longest = max(", "longest = min(", "the shortest example is packed first"),
        ("waiting.pop(0) for _", "waiting.pop() for _", "examples that wait are used backwards"),
        ("lengths[one] - lengths[0]", "lengths[one] - lengths[-1]", "the oldest example waits"),
        ("-batch.work", "batch.work", "the shortest micro-batch is first"),
    ),
    *of_file(
        "data/rows/position.py",
        "data/steps/test_mixture.py",
        (
            "Pending(place, one.line, one.part, one.epoch)",
            "Pending(place, one.line, one.part)",
            "examples that wait forget their epoch",
        ),
    ),
    *of_file(
        "data/examples/quarantine.py",
        "data/examples/test_quarantine.py",
        (
            "(entry.epoch, entry.row) < done_until",
            "(entry.epoch, entry.row) <= done_until",
            "a bad row exactly at the resumed position counts before it is read",
        ),
        (
            "bad / rows_read > self",
            "bad / rows_read >= self",
            "the allowed share of bad rows itself ends the run",
        ),
        (
            "self._fingerprints.get(entry.bad_row.file) == entry.fingerprint",
            "entry.bad_row.file in self._fingerprints",
            "bad rows of a file that was replaced are held against the new one",
        ),
        ("and place not in self._written", "", "a bad row is written down in each epoch"),
    ),
    *of_file(
        "data/rows/count.py",
        "data/rows/test_count.py",
        ("busiest = max(", "busiest = min(", "the arithmetic takes the rank with the fewest rows"),
    ),
    *of_file(
        "data/shards.py",
        "data/test_shards.py",
        (
            "if len(files) < world_size:",
            "if len(files) <= world_size:",
            "as many shards as ranks are refused",
        ),
        (
            "shards.sort(key=lambda entry: entry.name)",
            "shards.sort(key=lambda entry: entry.name, reverse=True)",
            "shards are listed backwards",
        ),
    ),
    *of_file(
        "data/sources.py",
        "data/test_sources.py",
        (
            'name.startswith(f"{self.name}/")',
            "name.startswith(self.name)",
            "a source owns the files of one whose name begins alike",
        ),
        ("source.epochs or epochs", "epochs", "a source's own number of epochs is ignored"),
    ),
    *of_file(
        "data/rows/stream.py",
        "data/rows/test_stream.py",
        (
            "self._tickets(epoch, sum(done))",
            "self._tickets(epoch, 0)",
            "a resumed run draws files anew",
        ),
        (
            "KeyedPermutation(len(reader), self._seed, epoch, reader.name)",
            "KeyedPermutation(len(reader), self._seed, reader.name)",
            "all epochs have one order",
        ),
    ),
    *of_file(
        "data/rows/stream.py",
        "data/steps/test_mixture.py data/rows/test_stream.py",
        (
            "position.epoch * len(reader) + position.row",
            "position.row",
            "rows of earlier epochs are not counted as done",
        ),
    ),
    *of_file(
        "data/rows/position.py",
        "data/rows/test_stream.py",
        (
            "FilePosition(rows, 0, epoch=epoch)",
            "FilePosition(0, 0, epoch=epoch)",
            "a file that was added is read within the epoch",
        ),
        (
            "epoch = min((position.epoch",
            "epoch = max((position.epoch",
            "a file that was added to a mixture joins at the furthest epoch",
        ),
    ),
    *of_file(
        "data/rows/position.py",
        "data/rows/test_stream.py data/steps/test_dataset.py "
        "training/checkpoint/test_changed_files.py",
        (
            "self._replace(row=0, part=0, epoch=epoch)",
            "self._replace(row=0, epoch=epoch)",
            "a file that begins anew skips examples of its first row",
        ),
    ),
    *of_file(
        "training/validation/rows.py",
        "training/validation/test_rows.py",
        ("if number >= max_rows:", "if number > max_rows:", "a validation row too many"),
    ),
    *of_file(
        "data/examples/hook.py",
        "data/examples/test_bad_hooks.py data/examples/test_hook.py",
        ("enough and required <= 3", "enough", "a hook that needs a fourth argument is accepted"),
    ),
    *of_file(
        "data/storage/cache.py",
        "data/storage/test_cache.py",
        (
            "        self._require_own()\n        path =",
            "        path =",
            "planted rows are read from the cache of another user",
        ),
    ),
    *of_file(
        "data/steps/prefetch.py",
        "data/steps/test_prefetch.py",
        (
            "        self._worker.kill()\n",
            "",
            "a hook that blocks keeps the rank",
        ),
        (
            "self._worker.pipe.close()",
            "pass",
            "the background process is always killed, whatever it is writing",
        ),
        (
            "error = _portable(error)",
            "pass",
            "an error that cannot be sent hides what it says",
        ),
    ),
    *of_file(
        "processes.py",
        "data/steps/test_prefetch.py",
        (
            "signal.pthread_sigmask(signal.SIG_SETMASK, before)",
            "pass",
            "a rank is deaf to signals after it has started another process",
        ),
        (
            "signal.pthread_sigmask(signal.SIG_BLOCK, ignored)",
            "signal.pthread_sigmask(signal.SIG_BLOCK, [])",
            "a signal to the whole job ends a process that is just starting",
        ),
    ),
    *of_file(
        "data/steps/dataset.py",
        "data/steps/test_yields.py",
        (
            "max(1, step.steps_left) if more else 0",
            "step.steps_left",
            "a rank does not know its last step",
        ),
    ),
    *of_file(
        "data/steps/yields.py",
        "data/steps/test_yields.py",
        (
            "- of.given_examples * each.rows",
            "",
            "examples that a row gave before a checkpoint are counted again",
        ),
        (
            "num_examples = waiting * unit + sum(",
            "num_examples = sum(",
            "examples that wait are not counted",
        ),
    ),
)
