"""Mutants of cluster/."""

from tests.mutants.mutant import of_file

MUTANTS = (
    *of_file(
        "cluster/attempt/evidence.py",
        "cluster/attempt/test_supervisor.py",
        (
            "if job.restarts > before or",
            "if job.restarts >= before or",
            "every job counts as requeued",
        ),
    ),
    *of_file(
        "cluster/attempt/requeue.py",
        "cluster/attempt/test_requeue.py",
        (
            'ended.get("exit_code", 0) != 0',
            "False",
            "a job whose rank 0 has no scontrol is not requeued",
        ),
    ),
    *of_file(
        "cluster/batch/container.py",
        "cluster/batch/test_container.py",
        (
            '[*given, f"{run.path}:{run.path}"]',
            '[f"{run.path}:{run.path}", *given]',
            "a mount of the user's hides the run directory",
        ),
        ("if source == target:", "if source:", "data at another path counts as visible"),
    ),
    *of_file(
        "cluster/batch/directives.py",
        "cluster/batch/test_options.py",
        (
            'str(value).replace("\\\\", "\\\\\\\\")',
            "str(value)",
            "sbatch takes backslashes out of a value",
        ),
    ),
    *of_file(
        "cluster/batch/options.py",
        "cluster/batch/test_options.py",
        ("if not _is_one_shot(name)", "if name", "a resume waits as the launch did"),
    ),
    *of_file(
        "cluster/failures.py",
        "cluster/test_failures.py",
        (
            "(yields or there.witness is None)",
            "yields",
            "a second failure report overwrites the first",
        ),
        (
            "atomic.write_synced(partial, ",
            "partial.write_text(",
            "a failure report is not on the disk",
        ),
        ("if fits and path.name", "if path.name", "a damaged report ends whoever reads it"),
    ),
    *of_file(
        "cluster/job_states.py",
        "cluster/test_job_states.py",
        (
            "words <= ENDED | _REMARKS",
            "True",
            "a job that failed and is requeued in hold is taken for one that is over",
        ),
    ),
    *of_file(
        "cluster/job_states.py",
        "cluster/rank/test_stopping.py",
        (
            "int(restarts) > restarts_before",
            "int(restarts) >= restarts_before",
            "a job that nobody requeued is taken for one that was",
        ),
    ),
    *of_file(
        "cluster/journal.py",
        "cluster/test_journal.py",
        (
            "        os.fsync(file)",
            "        pass",
            "an entry is not on the disk when `append` returns",
        ),
        (
            "os.ftruncate(file, os.fstat(file).st_size - written)",
            "pass",
            "what a full disk took of an entry stays",
        ),
    ),
    *of_file(
        "cluster/attempt/verdict.py",
        "cluster/attempt/test_verdict.py",
        ("first = min(causes", "first = max(causes", "the last rank that failed is blamed"),
        (
            "silent = [death for death in evidence.deaths if death.rank not in spoke]",
            "silent = list(evidence.deaths)",
            "a rank that said why it ended is taken for one that was killed",
        ),
        ("first = False", "first = True", "ranks that srun ended are blamed"),
        ("len(silent) != 1 or", "len(silent) < 1 or", "of two silent nodes the first is blamed"),
        (
            "evidence.nodes.index(node) * _per_node(evidence)",
            "evidence.nodes.index(node)",
            "a lost node is named by a wrong rank",
        ),
        (
            "return max((failure.step",
            "return min((failure.step",
            "the step of an attempt is that of the slowest rank",
        ),
        (
            "if evidence.stopped != Cause.REQUEUED or",
            "if",
            "a cancelled job is taken for a lost batch host",
        ),
        (
            "if not death.by_term and not death.of_peer]",
            "if not one.of_peer]",
            "a sibling that SLURM told to leave is taken for the rank that failed",
        ),
    ),
    *of_file(
        "cluster/rank/abort.py",
        "cluster/rank/test_abort.py",
        (
            "failure.rank != self._rank",
            "failure.rank == self._rank",
            "a rank takes its own report for another's",
        ),
        (
            "is_of_peer(error) or self._a_peer_failed()",
            "is_of_peer(error)",
            "an exception after another rank left is taken for the cause",
        ),
    ),
    *of_file(
        "cluster/launch/local.py",
        "cluster/launch/test_local.py::test_what_ranks_leave_behind_when_they_end_on_term_is_killed",
        (
            "        self.send(signal.SIGKILL)\n        for",
            "        for",
            "what a rank leaves behind lives on",
        ),
    ),
    *of_file(
        "cluster/launch/attended.py",
        "cluster/launch/test_local.py::test_signals_are_passed_on",
        (
            "signal.SIGUSR2 if number == signal.SIGUSR2 else signal.SIGTERM",
            "signal.SIGTERM",
            "USR2 arrives as TERM",
        ),
    ),
    *of_file(
        "cluster/peers.py",
        "cluster/rank/test_abort.py",
        (
            "isinstance(error, RuntimeError) and",
            "",
            "a hook's broken connection is taken for a peer's",
        ),
    ),
    *of_file(
        "cluster/rank/stopping.py",
        "cluster/rank/test_stopping.py",
        (
            "Cause.PREEMPTED if usr2 else Cause.REQUEUED",
            "Cause.REQUEUED if usr2 else Cause.PREEMPTED",
            "preemption and an operator's requeue are exchanged",
        ),
        (
            "usr2 and _seconds_left(fields)",
            "_seconds_left(fields)",
            "TERM by hand shortly before the limit is the time limit",
        ),
    ),
    *of_file(
        "cluster/rank/journal_writer.py",
        "cluster/rank/test_journal_writer.py",
        ("save_s + 2 * step_s", "save_s + step_s", "a signal's lead is compared with one step"),
        (
            "if needed_s <= lead_s",
            "if needed_s >= lead_s",
            "a lead that is long enough is warned of",
        ),
        (
            'self._step = entry.get("step", self._step)',
            'self._step = entry.get("step")',
            "the end of an attempt does not know its step",
        ),
    ),
    *of_file(
        "cluster/restart_policy.py",
        "cluster/test_restart_policy.py",
        (
            "if attempt.cause and attempt.cause not in STOPS]",
            "if attempt.cause]",
            "a preemption between two equal failures hides that they are equal",
        ),
        (
            "or count <= allowed",
            "or count < allowed",
            "one restart after a lost node fewer than allowed",
        ),
        (
            "return attempt.cause is not None and attempt.cause not in STOPS and",
            "return attempt.cause is not None and",
            "stops by a person count as standstill",
        ),
        (
            "return attempt.saved_steps < least_steps",
            "return attempt.saved_steps <= least_steps",
            "preemptions with just enough steps count as standstill",
        ),
        (
            "attempt.saved_steps < least_steps",
            "False",
            "a job that makes a step per time limit is requeued for ever",
        ),
        (
            "if len(stood) < allowed:",
            "if len(stood) <= allowed:",
            "an attempt without progress too many",
        ),
        (
            "history.of_job(last.job_id) if last",
            "history.attempts if last",
            "a new job inherits the budget of the last",
        ),
        (
            "(before.cause, before.last_step) != (last.cause, last.last_step)",
            "before.cause != last.cause",
            "equal failures at different steps end the job",
        ),
        (
            '_NUMBER.sub("#", error) == _NUMBER.sub("#", other)',
            "error == other",
            "an error with an address in it is never the same",
        ),
    ),
    *of_file(
        "cluster/history.py",
        "cluster/test_history.py",
        (
            "max(0, self._checkpoint_step - self.step_before)",
            "self._checkpoint_step",
            "the same checkpoint written again counts as progress",
        ),
        (
            'elif entry.get("attempt") in of_number:',
            "elif False:",
            "what an attempt writes late counts for the next one",
        ),
        (
            'if "moved_from" in entry:',
            "if False:",
            "a copied run cancels the job of the original",
        ),
        (
            '"launched", "changed", "started", "ended", "given_up")',
            '"started", "ended", "given_up")',
            "a run that is being resumed looks as if it were over",
        ),
    ),
    *of_file(
        "cluster/launch/snapshot.py",
        "cluster/launch/test_snapshot.py",
        ("key=len, reverse=True", "key=len", "of two secrets the end of the longer one stays"),
        (">= _MIN_SECRET_LENGTH", "> _MIN_SECRET_LENGTH", "a secret of eight characters stays"),
    ),
    *of_file(
        "cluster/rank/stacks.py",
        "cluster/rank/test_stacks.py",
        (
            "for state in reported if not state.in_collective",
            "for state in reported if state.in_collective",
            "those who wait are named instead of those who are waited for",
        ),
        ("least = min((state.step", "least = max((state.step", "who is ahead is named"),
        (
            "bool(culprits) and state not in culprits",
            "bool(culprits)",
            "the hang of the rank that is waited for is a consequence",
        ),
        (
            "if len(behind) < len(reported) else []",
            "if behind else []",
            "where all wait for one another all are named",
        ),
    ),
    *of_file(
        "cluster/rank/signals.py",
        "cluster/rank/test_signals.py",
        (
            "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})",
            "pass",
            "USR2 ends the children",
        ),
    ),
    *of_file(
        "cluster/attempt/supervisor.py",
        "cluster/attempt/test_supervisor.py",
        (
            "if not job_states.is_requeued(",
            "if job_states.is_requeued(",
            "a job that SLURM has requeued is requeued again",
        ),
        (
            "    failures.clear(run)\n",
            "    pass\n",
            "an attempt is judged by the reports of the one before",
        ),
        (
            "collected.stopped == Cause.CANCELLED and",
            "collected.stopped != Cause.CANCELLED and",
            "a cancelled job comes back",
        ),
    ),
    *of_file(
        "cluster/attempt/exclude_nodes.py",
        "cluster/attempt/test_supervisor.py",
        (
            "if len(others) < needed:",
            "if len(others) <= needed:",
            "a node stays though just enough others are left",
        ),
    ),
    *of_file(
        "cluster/rank/watchdog.py",
        "cluster/rank/test_watchdog.py::test_only_a_long_phase_has_the_grace",
        (
            "if phase in _LONG_PHASES else 0",
            "if phase not in _LONG_PHASES else 0",
            "a step has the grace of a long phase",
        ),
        (
            '"checkpoint", "validation", "end"})',
            '"checkpoint", "validation"})',
            "the end has no grace",
        ),
    ),
    *of_file(
        "cluster/failures.py",
        "cluster/test_failures.py",
        (
            "yields = failure.consequence or failure.witness is not None",
            "yields = failure.consequence",
            "what one rank writes for another overwrites what that has said",
        ),
    ),
    *of_file(
        "cluster/rank/abort.py",
        "cluster/rank/test_watchdog.py",
        ("        self.answer_hang()\n", "", "TERM cuts off the report of a rank that hangs"),
    ),
    *of_file(
        "cluster/rank/watchdog.py",
        "cluster/rank/test_watchdog.py",
        (
            "            stacks.call(self._run, self._attempt, rank)",
            "            pass",
            "who finds a hang calls nobody",
        ),
        (
            "if complete or self._late.is_set() or",
            "if complete or",
            "a report that TERM has found in the middle waits on, and is killed",
        ),
    ),
    *of_file(
        "cluster/peers.py",
        "cluster/rank/test_abort.py",
        (r"Timed out waiting \d+ ?ms for|", "", "gloo's timeout is a cause"),
    ),
    *of_file(
        "cluster/owner/liveness.py",
        "cluster/owner/test_identity.py",
        ("seen.silent_s > owner.timeout_s", "seen.silent_s > 0", "an owner is dead at once"),
        (
            "owner.restarts < claimant.restarts",
            "owner.restarts <= claimant.restarts",
            "a job takes its run from itself",
        ),
        (
            'if seen.job == "over" or was_rebooted',
            "if was_rebooted",
            "a process whose job is over lives on",
        ),
        ("return same_host and known", "return known", "a process of any other host is dead"),
        (
            "        and owner.pid_namespace == claimant.pid_namespace\n",
            "",
            "pids of a container are looked for outside",
        ),
        (
            "int(restarts_now) > restarts",
            "int(restarts_now) >= restarts",
            "a job that runs is over",
        ),
    ),
    *of_file(
        "cluster/owner/identity.py",
        "cluster/owner/test_identity.py",
        (
            "            and self.restarts == other.restarts\n",
            "",
            "the start before is taken for this one",
        ),
    ),
    *of_file(
        "cluster/owner/owner_files.py",
        "cluster/owner/test_owner_files.py",
        (
            "max(_numbers(folder), default=0)",
            "min(_numbers(folder), default=0)",
            "the first owner stays it for ever",
        ),
        (
            "owner.token and highest(folder) == number",
            "owner.token",
            "a number below the highest is a claim",
        ),
        (")[:-KEPT]:", ")[KEPT:]:", "the highest owner file is removed"),
    ),
    *of_file(
        "cluster/owner/ownership.py",
        "cluster/owner/test_ownership.py",
        (
            "return highest == self.number and self._is_own_file()",
            "return True",
            "an owner that lost its run writes on",
        ),
        (
            "return highest == self.number and self._is_own_file()",
            "return highest == self.number",
            "an owner whose files were removed writes on",
        ),
    ),
    *of_file(
        "cluster/owner/claim.py",
        "cluster/owner/test_ownership.py",
        (
            "return _is_own(sight.owner, claimant) or is_dead(",
            "return _is_own(sight.owner, claimant) or not is_dead(",
            "a run is taken from whoever lives",
        ),
    ),
    *of_file(
        "cluster/owner/owner_sight.py",
        "cluster/owner/test_ownership.py",
        ("start == owner.start_time", "start", "a pid that was used again is the owner"),
        (
            "    except LaunchError:\n        return False, {}\n    return job_is",
            "    except LaunchError:\n        return True, {}\n    return job_is",
            "SLURM that does not answer means dead",
        ),
    ),
    *of_file(
        "cluster/launch/ports.py",
        "cluster/launch/test_ports.py",
        (
            "if not first <= port <= last]",
            "if first <= port <= last]",
            "the kernel's own ports are chosen",
        ),
    ),
    *of_file(
        "cluster/slurm.py",
        "cluster/test_slurm.py",
        (
            'return "Invalid job id" in str(error)',
            "return True",
            "SLURM that does not answer has forgotten the job",
        ),
        (
            '{**inherited, "SLURM_TIME_FORMAT": "%s"}',
            "inherited",
            "times come in the format of the shell",
        ),
        ("of_job or jobs", "jobs", "the first task of an array is any job of it"),
    ),
    *of_file(
        "cluster/slurm.py",
        "cluster/test_recorded.py",
        (
            "fields.setdefault(name, value)",
            "fields[name] = value",
            "a comment is taken for the state of a job",
        ),
        (
            '_JOB_NAME.sub("", line, count=1)',
            "line",
            "the name of a job is taken for its state",
        ),
        (
            "if len(line) > 1",
            "if True",
            "a line that is no node ends the query",
        ),
    ),
    *of_file(
        "cluster/preflight/partitions.py",
        "cluster/test_recorded.py",
        ("split(resources)", "split(resources)[:1]", "only the first resource of a node counts"),
        ('not self.state.endswith("*")', "True", "a node that does not respond starts jobs"),
        ("most < int(limit)", "fewest < int(limit)", "an elastic job is too small"),
        (
            "if not found:\n            return []",
            "if not found:\n            continue",
            "of several partitions all must fit",
        ),
    ),
    *of_file(
        "cluster/preflight/can_start.py",
        "cluster/test_recorded.py",
        (
            "(*_ERROR.split(before), reason)",
            "(reason,)",
            "what a site or a QOS says is dropped",
        ),
    ),
    *of_file(
        "cluster/preflight/storage.py",
        "cluster/preflight/test_storage.py",
        ("if free < size:", "if free <= 0:", "a checkpoint that does not fit is not noticed"),
        (
            "most - len(list_named(run.checkpoints))",
            "most",
            "checkpoints that are there are counted again",
        ),
        ("limit - used) * 1024", "limit - used)", "a quota is in bytes"),
    ),
    *of_file(
        "cluster/preflight/mounts.py",
        "cluster/preflight/test_storage.py",
        ("max(reversed(holding)", "max((holding)", "a mount that is covered by another is taken"),
        ("os.path.realpath(path)", "path", "a link hides the file system behind it"),
    ),
    *of_file(
        "cluster/preflight/hook_trial.py",
        "cluster/preflight/test_hook_trial.py",
        ("os.setsid()", "pass", "what a hook has started stays behind"),
        ("sys.dont_write_bytecode = True", "pass", "the trial leaves __pycache__"),
        ("map(redact, problems)", "problems", "a secret is printed"),
        ("bad += 1", "bad = 1", "one bad row of many is counted"),
    ),
    *of_file(
        "cluster/slurm.py",
        "cluster/watch/test_all_runs.py::test_all_runs_with_one_question",
        ("','.join(job_ids)", "job_ids[0]", "SLURM is asked for one job of all"),
    ),
    *of_file(
        "cluster/rank/phases.py",
        "cluster/rank/test_phases.py",
        ("    fence.check(run.path)\n", "", "phases are written into another owner's run"),
        (
            "(phase.rank, phase.attempt) == (rank, attempt)",
            "phase.rank == rank",
            "phases of an earlier attempt are those of this one",
        ),
        (
            "    except OSError:\n        # The training",
            "    except IndexError:\n        # The training",
            "a full disk ends the training for a phase",
        ),
    ),
    *of_file(
        "cluster/rank/log_sections.py",
        "cluster/rank/test_log_sections.py",
        ("_FIRST_LINE.match(line)", "_FIRST_LINE.search(line)", "a line that names one begins it"),
    ),
    *of_file(
        "cluster/watch/starting.py",
        "cluster/watch/test_starting.py",
        ("first = min(", "first = max(", "the ranks that wait are those that are waited for"),
        ("if len(states) < world_size:", "if False:", "ranks that have not started are forgotten"),
    ),
    *of_file(
        "cluster/watch/summary.py",
        "cluster/watch/test_all_runs.py::test_a_stopped_job_that_is_queued_again"
        " cluster/watch/test_all_runs.py::test_the_job_of_the_original_is_not_that_of_the_copy"
        " cluster/watch/test_all_runs.py::test_when_slurm_does_not_know",
        (
            "return not (history.is_at_rest and over)",
            "return not history.is_at_rest",
            "a requeued job is not asked for",
        ),
        (
            "or _is_copy(run) else history.job_id",
            "else history.job_id",
            "the job of the original is that of its copy",
        ),
        (
            '    if jobs is None:\n        return "unknown"\n',
            "",
            "SLURM that does not answer has lost all jobs",
        ),
    ),
    *of_file(
        "cluster/watch/progress.py",
        "cluster/watch/test_progress.py",
        ("if made > 0 and", "if", "a row of a validation is a step"),
        ("[-_RECENT_ROWS - 1 :]", "", "the time of a step is that of the whole run"),
        (
            "total_steps < self.step:\n            return None",
            "False:\n            return None",
            "an estimate that was too low gives a negative time",
        ),
    ),
    *of_file(
        "cluster/watch/logs.py",
        "cluster/watch/test_logs.py cluster/watch/test_watching.py",
        ("if found == count:", "if found > count:", "one line too many is shown"),
        (
            "len(piece) - 1 if position == end else len(piece)",
            "len(piece)",
            "the newline at the end begins a line",
        ),
        ("and watch.waits:", "and False:", "a job that has started is pending for a while"),
    ),
    *of_file(
        "cluster/watch/following.py",
        "cluster/watch/test_following.py",
        ("or not self.at_line_start", "", "the live line is drawn into a line of the log"),
        ("if not self._is_shown", "if False", "a pipe gets the live line"),
    ),
)
