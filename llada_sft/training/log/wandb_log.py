"""Metrics to Weights & Biases, which can neither end nor delay a training.

Everything that wandb does happens in its own thread: the training only puts rows into a queue. If
wandb raises or does not answer, there is one warning, and the rows that it has not taken go into an
offline run below logs/wandb, which `wandb sync` sends later.
"""

import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from llada_sft import atomic
from llada_sft.run_dir import RunDir

# wandb itself gives up an init after this time.
INIT_S = 60.0
# A call that takes longer counts as stuck.
STUCK_S = 120.0
# For sending the rest, when the training is over.
FINISH_S = 60.0
_MAX_REASON = 300
Row = dict[str, Any]


class WandbLog(Logger):
    """Rows for one run of W&B, which is the same one for all attempts of our run.

    Args:
        project: The project's name.
        run: The run directory, with the id in it.
        name: What W&B calls the run.
        warn: Reports one line to a person.
    """

    def __init__(self, project: str, run: RunDir, name: str, warn: Callable[[str], None]) -> None:
        super().__init__()
        self._project, self._run, self._name, self._warn = project, run, name, warn
        self._sender: _Sender | None = None
        self._given_up = False

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml has them, and paths may hold a credential."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._given_up:
            return
        if self._sender is None:
            self._sender = self._start(os.environ.get("WANDB_MODE") or "online", [])
        self._sender.put({**metrics, "step": step})
        self._check()

    def finalize(self, status: str) -> None:
        """Wait until the rest is sent, but not forever."""
        for _ in range(2):
            if self._sender is None or self._given_up:
                return
            sender = self._sender
            sender.finish()
            sender.thread.join(FINISH_S)
            self._check(ending=True)
            if self._sender is sender:
                break
        if sender.thread.is_alive() and not self._given_up:
            self._warn(f"W&B has not taken all metrics in {FINISH_S:.0f} s; metrics.csv has them")

    def _check(self, ending: bool = False) -> None:
        """Change to an offline run if the present one failed or does not answer."""
        assert self._sender is not None
        # At the end, a call may have started just after the wait for it.
        reason = self._sender.trouble(FINISH_S / 2 if ending else STUCK_S)
        if reason is None:
            return
        failed, missing = self._sender, isinstance(self._sender.error, ImportError)
        if missing or failed.mode == "offline":
            self._given_up = True
            self._warn(f"W&B is off ({reason}); metrics.csv has all metrics")
            return
        folder = self._run.logs / "wandb"
        self._warn(
            f"W&B cannot be reached ({reason}); training continues, with an offline run in"
            f" {folder}: to send it later, run  wandb sync  with its folder"
        )
        # For calls of wandb without a mode.
        os.environ["WANDB_MODE"] = "offline"
        self._sender = self._start("offline", failed.unsent(), again=True)

    def _start(self, mode: str, rows: list[Row], again: bool = False) -> "_Sender":
        folder = self._run.logs
        folder.mkdir(parents=True, exist_ok=True)
        run_id = stored_id(self._run, self._name)

        def start() -> Any:
            if again:
                _forget_the_first()
            return _init(self._project, run_id, self._name, folder, mode)

        return _Sender(mode, rows, start)


class _Sender:
    """One run of wandb in one thread.

    Attributes:
        mode: wandb's: online, offline, ...
        error: What ended the thread, if anything did.
    """

    def __init__(self, mode: str, rows: list[Row], start: Callable[[], Any]) -> None:
        self.mode, self._start = mode, start
        self.error: BaseException | None = None
        self._rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        for row in rows:
            self._rows.put(row)
        self._taken: Row | None = None
        self._busy_since: float | None = time.monotonic()
        # A daemon: the process does not wait for it at its end.
        self.thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self.thread.start()

    def put(self, row: Row) -> None:
        self._rows.put(row)

    def finish(self) -> None:
        self._rows.put(None)

    def unsent(self) -> list[Row]:
        """Return the rows that wandb has not taken; the sender cannot be used afterwards."""
        rows = [self._taken]
        while not self._rows.empty():
            rows.append(self._rows.get())
        return [row for row in rows if row is not None]

    def trouble(self, patience_s: float) -> str | None:
        """Return why it does not work; None if it does."""
        if self.error is not None:
            return _reason(self.error)
        since = self._busy_since
        if since is not None and time.monotonic() - since >= patience_s:
            return f"no answer in {patience_s:.0f} s"
        return None

    def _work(self) -> None:
        try:
            run = self._start()
            while True:
                self._busy_since = None
                self._taken = self._rows.get()
                self._busy_since = time.monotonic()
                if self._taken is None:
                    run.finish()
                    self._busy_since = None
                    return
                run.log(self._taken)
        # Whatever a foreign library raises in its own thread.
        except BaseException as error:
            self.error = error


def stored_id(run: RunDir, name: str) -> str:
    """Return the id of the run at W&B, the same for all attempts; created by the first one.

    Not the name alone: two runs with the same name in one project would become one.
    """
    try:
        if known := run.wandb_id.read_text(encoding="utf-8").strip():
            return known
    except (OSError, UnicodeDecodeError):
        pass
    # Before ids were stored, the name was the id.
    run_id = name if (run.logs / "wandb").exists() else f"{name}-{secrets.token_hex(4)}"
    with atomic.replacing(run.wandb_id) as partial:
        partial.write_text(f"{run_id}\n", encoding="utf-8")
    return run_id


def _forget_the_first() -> None:
    """End wandb's service process: it holds the id of a run that it could not start."""
    import wandb

    # Whatever is broken may raise here, too; the next init will show it.
    with suppress(Exception):
        wandb.teardown(exit_code=1)


def _init(project: str, run_id: str, name: str, folder: Path, mode: str) -> Any:
    import wandb

    run = wandb.init(
        project=project,
        id=run_id,
        name=name,
        dir=str(folder),
        mode=mode,  # type: ignore[arg-type]
        resume="allow",
        # Not the run that failed in this process.
        reinit="create_new",
        settings=wandb.Settings(
            # Metrics only: code, diffs and what is printed may hold a secret.
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            x_disable_meta=True,
            silent=True,
            init_timeout=INIT_S,
        ),
    )
    # A resumed run logs some steps again, which wandb's own count of steps cannot do.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    if mode == "online" and getattr(run, "url", None):
        print(f"W&B {run.url}", flush=True)
    return run


def _reason(error: BaseException) -> str:
    """Describe an error in one line, without the key."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if key := os.environ.get("WANDB_API_KEY"):
        text = text.replace(key, "***")
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}..."
