"""The user's hook: loaded by its path, and described in one line where it cannot be used."""

import sys
from pathlib import Path

import pytest

from llada_sft.data.examples.hook import check_hook, load_hook
from llada_sft.errors import DataError

GOOD = "def process_data(record, tokenizer, max_length):\n    return record\n"
NO_FUNCTION = ": defines no function process_data(record, tokenizer, max_length)"


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "hook.py"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_good_hook(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    check_hook(path)
    assert load_hook(path)({"a": 1}, None, 8) == {"a": 1}


def test_the_shipped_hook() -> None:
    path = Path(__file__).parents[4] / "utils" / "process_data.py"
    check_hook(path)
    assert load_hook(path).__name__ == "process_data"


def test_a_hook_that_imports_its_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere_of_the_test.py").write_text(GOOD.replace("process_data", "make"))
    monkeypatch.syspath_prepend(tmp_path)
    path = write(tmp_path, "from elsewhere_of_the_test import make as process_data\n")
    check_hook(path)
    try:
        assert load_hook(path)([7], None, 8) == [7]
    finally:
        sys.modules.pop("elsewhere_of_the_test", None)


def test_checking_does_not_run_it(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = write(tmp_path, f"open({str(marker)!r}, 'w').close()\n{GOOD}")
    check_hook(path)
    assert not marker.exists()
    load_hook(path)
    assert marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1\n", NO_FUNCTION),
        ("", NO_FUNCTION),
        ("class process_data:\n    pass\n", NO_FUNCTION),
        ("def outer():\n    def process_data():\n        pass\n", NO_FUNCTION),
        ("from x import process_data as other\n", NO_FUNCTION),
        (
            "x = 1\ndef f(:\n",
            ":2: not Python: invalid syntax",
        ),
        (
            b"x = 1\0\n",
            ": not Python: source code string cannot contain null bytes",
        ),
    ],
)
def test_a_file_that_is_no_hook(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = write(tmp_path, content)
    for refuse in (check_hook, load_hook):
        with pytest.raises(DataError) as caught:
            refuse(path)
        assert str(caught.value) == f"{path}{message}"


def test_a_hook_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_hook(tmp_path / "hook.py")
    expected = f"{tmp_path}/hook.py: cannot be read: No such file or directory; set data.hook"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero (hook.py line 2)"),
        (
            "import no_such_module_of_the_test",
            "ModuleNotFoundError: No module named 'no_such_module_of_the_test' (hook.py line 2)",
        ),
    ],
)
def test_a_hook_that_raises_on_import(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path, f"import sys\n{line}\n{GOOD}")
    with pytest.raises(DataError) as caught:
        load_hook(path)
    assert str(caught.value) == f"{path}: the hook raised on import: {message}"


def test_the_name_utils_stays_free(tmp_path: Path) -> None:
    (tmp_path / "utils").mkdir()
    path = tmp_path / "utils" / "process_data.py"
    path.write_text(GOOD)
    before = set(sys.modules)
    load_hook(path)
    new = {name for name in set(sys.modules) - before if not name.startswith("_llada_sft")}
    assert new == set()
    assert "process_data" not in sys.modules


def test_two_hooks_do_not_mix(tmp_path: Path) -> None:
    first, second = tmp_path / "a.py", tmp_path / "b.py"
    first.write_text(f"NAME = 'a'\n{GOOD.replace('return record', 'return NAME')}")
    second.write_text(f"NAME = 'b'\n{GOOD.replace('return record', 'return NAME')}")
    hooks = [load_hook(first), load_hook(second)]
    assert [hook({}, None, 8) for hook in hooks] == ["a", "b"]
