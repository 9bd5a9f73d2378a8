"""What is said of a conversion that failed; the process itself is in tests/distributed."""

import errno
import json
import pickle
import shutil
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llada_sft.errors import CheckpointError, SaveError
from llada_sft.training.checkpoint import universal_process
from llada_sft.training.checkpoint.universal import Conversion, OptimizerRepair
from tests.unit.training.checkpoint_files import write_checkpoint


class Ended:
    """Stands for a process that has ended."""

    pid = -1

    def __init__(self, code: int, said: object, told: str) -> None:
        self.returncode = code
        self._said = json.dumps(said).encode() if said else b"", told.encode()

    def communicate(self) -> tuple[bytes, bytes]:
        return self._said


def failure(tmp_path: Path, code: int, said: object, told: str = "") -> Exception | None:
    checkpoint = write_checkpoint(tmp_path, 4)
    conversion = object.__new__(Conversion)
    conversion._checkpoint, conversion._folder = checkpoint, tmp_path / "step_4.universal"
    conversion._folder.mkdir()
    conversion._process = Ended(code, said, told)  # type: ignore[assignment]
    error = conversion.error()
    assert conversion._folder.exists() == (error is None)
    # What is over is not ended again.
    conversion.cancel()
    return error


def test_all_went_well(tmp_path: Path) -> None:
    assert failure(tmp_path, 0, None) is None


INTACT = "; resume with as many ranks as wrote it"


@pytest.mark.parametrize(
    ("code", "said", "told", "kind", "line"),
    [
        (-9, None, "", RuntimeError, "the process was killed by SIGKILL (out of memory?)"),
        (
            1,
            {"killed": "one of its processes was killed"},
            "",
            RuntimeError,
            "one of its processes was killed (out of memory?)",
        ),
        (
            1,
            {"errno": errno.EIO, "text": "Input/output error"},
            "",
            CheckpointError,
            f"Input/output error{INTACT}",
        ),
        (1, {"other": "KeyError: 'x'"}, "", CheckpointError, f"KeyError: 'x'{INTACT}"),
        # It could not even begin.
        (1, None, "Traceback\nImportError: no\n", CheckpointError, f"ImportError: no{INTACT}"),
        (3, None, "", CheckpointError, f"no message{INTACT}"),
        (
            1,
            {"code": "code (posix.system)"},
            "",
            CheckpointError,
            "holds code (posix.system); nothing of it was run:"
            " use a checkpoint that this training wrote",
        ),
    ],
)
def test_why_it_failed(
    tmp_path: Path, code: int, said: object, told: str, kind: type[Exception], line: str
) -> None:
    error = failure(tmp_path, code, said, told)
    assert type(error) is kind
    assert str(error) == (
        f"{tmp_path}/step_4: cannot be converted for another number of ranks: {line}"
    )


@pytest.mark.parametrize(("number", "free"), [(errno.ENOSPC, ", 1.0 MB free"), (errno.EDQUOT, "")])
def test_a_full_disk_says_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, free: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    error = failure(tmp_path, 1, {"errno": number, "text": "No space left on device"})
    files = {path.name: path.stat().st_size for path in (tmp_path / "step_4/checkpoint").iterdir()}
    optimizer = [size for name, size in files.items() if "optim" in name]
    needed = (sum(files.values()) + sum(optimizer) + max(optimizer)) / 1e6
    assert isinstance(error, SaveError)
    assert f"No space left on device; {needed:.1f} MB needed{free}: the checkpoint is" in str(error)


def test_an_error_is_described_for_the_rank() -> None:
    described = universal_process._described
    assert described(BrokenProcessPool()) == {"killed": "one of its processes was killed"}
    assert described(OSError(28, "No space left on device", "/a")) == {
        "errno": 28,
        "text": "No space left on device",
    }
    assert described(pickle.UnpicklingError("unsupported GLOBAL a.b whose")) == {
        "code": "code (a.b)"
    }
    assert described(KeyError("x\ny")) == {"other": "KeyError: 'x\\ny'"}


def test_a_full_device_has_its_number_on_the_way_to_the_rank() -> None:
    with pytest.raises(OSError, match="No space left on device") as caught:
        universal_process._save("/dev/full", {"a": torch.zeros(1 << 20)})
    # From a worker to the process that describes it.
    there = pickle.loads(pickle.dumps(caught.value))
    assert universal_process._described(there)["errno"] == errno.ENOSPC


def test_what_the_converter_writes_is_read(tmp_path: Path) -> None:
    universal_process._save(str(tmp_path / "a/b/fp32.pt"), {"param": torch.arange(3)})
    assert torch.load(tmp_path / "a/b/fp32.pt")["param"].tolist() == [0, 1, 2]
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["fp32.pt"]


def test_step_counts_are_moved_to_where_fused_weights_are() -> None:
    """From the CPU, as DeepSpeed and torch's unfused AdamW leave them; meta stands for a GPU."""
    weight = torch.nn.Parameter(torch.empty(2, device="meta"))
    for fused, device in ((True, "meta"), (None, "cpu")):
        optimizer = torch.optim.AdamW([weight], foreach=False)
        optimizer.param_groups[0]["fused"] = fused
        repair = OptimizerRepair(optimizer)
        loaded = torch.tensor(7.0)
        optimizer.state[weight]["step"] = loaded
        repair.apply()
        step = optimizer.state[weight]["step"]
        assert step.device.type == device
        assert step is not loaded
