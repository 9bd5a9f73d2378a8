"""Rows of files: where they are, in which order they come, and going on from any position."""

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llada_sft.data.rows import shard_reader, stream
from llada_sft.data.rows.count import count_rows
from llada_sft.data.rows.position import FilePosition, Pending
from llada_sft.data.rows.row import Row
from llada_sft.data.rows.stream import RowStream
from llada_sft.data.sources import name_shards
from llada_sft.data.storage import line_index
from llada_sft.data.storage.line_index import index_lines
from llada_sft.errors import DataError

SIZES = st.lists(st.integers(0, 7), min_size=1, max_size=4)


@contextmanager
def shards(sizes: Sequence[int]) -> Iterator[tuple[Path, list[Path]]]:
    """Files whose rows are `file:line`, and the folder that they are in."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paths = [root / f"{number}.jsonl" for number in range(len(sizes))]
        for number, (path, size) in enumerate(zip(paths, sizes, strict=True)):
            path.write_text("".join(f"{number}:{line}\n" for line in range(1, size + 1)))
        yield root, paths


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No row is read before it is needed."""
    monkeypatch.setattr(stream, "_BYTES_AHEAD", 1)


def texts(rows: Iterable[Row]) -> list[str]:
    return [row.text.decode().strip() for row in rows]


def one_epoch(rows: RowStream, epoch: int = 0) -> list[str]:
    return texts(rows.rows(epoch, rows.start_positions()))


def after(
    rows: RowStream, epoch: int, num_rows: int, size: Mapping[str, FilePosition]
) -> dict[str, FilePosition]:
    """The positions once `num_rows` of an epoch are done."""
    drawn = Counter(row.file for row in islice(rows.rows(epoch, size), num_rows))
    return {name: FilePosition(at.row + drawn[name], 0) for name, at in size.items()}


@pytest.mark.parametrize(
    ("content", "starts", "lines"),
    [
        (b"", [], []),
        (b"\n", [], []),
        (b"a", [0], [1]),
        (b"a\n", [0], [1]),
        (b"a\nb", [0, 2], [1, 2]),
        (b"a\r\nb\r\n", [0, 3], [1, 2]),
        (b"\r\na\r\n\r\nb", [2, 7], [2, 4]),
        (b"\n\na\n \t\nb\n\n", [2, 7], [3, 5]),
        (b" a\n" + b" " * 40 + b"\nb\n" + b"\t" * 17, [0, 44], [1, 3]),
        (b" " * 40 + b"a\n", [0], [1]),
    ],
)
def test_lines_that_are_not_blank(
    tmp_path: Path, content: bytes, starts: list[int], lines: list[int]
) -> None:
    (tmp_path / "a").write_bytes(content)
    index = index_lines(tmp_path / "a")
    assert index.starts.tolist() == starts
    assert index.lines.tolist() == lines
    assert count_rows([tmp_path / "a"]) == ([len(lines)], False)


@given(
    lines=st.lists(st.sampled_from([b"", b" ", b"\r", b"{}", b" 1", b"xyz" * 5, b" " * 20])),
    final=st.booleans(),
    chunk=st.integers(1, 40),
)
@settings(max_examples=60, deadline=None)
def test_lines_across_the_chunks_of_a_file(lines: list[bytes], final: bool, chunk: int) -> None:
    content = b"\n".join(lines) + b"\n" * final
    expected = [number for number, line in enumerate(lines, start=1) if line.strip()]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_index, "_CHUNK_BYTES", chunk)
        path = Path(folder, "a")
        path.write_bytes(content)
        index = index_lines(path)
    assert index.lines.tolist() == expected
    begins = [sum(len(line) + 1 for line in lines[: number - 1]) for number in expected]
    assert index.starts.tolist() == begins


def test_a_row_says_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "a.jsonl"
    path.write_bytes(b"\n[1]\r\n\n[2]")
    first, second = RowStream(name_shards([path], tmp_path), seed=0, shuffle=False).rows(
        0, {"sub/a.jsonl": FilePosition(0, 0)}
    )
    assert first == Row("sub/a.jsonl", line=2, byte=1, text=b"[1]\r\n", path=str(path))
    assert second == Row("sub/a.jsonl", line=4, byte=7, text=b"[2]", path=str(path))
    assert second.where == f"{tmp_path}/sub/a.jsonl:4 (byte 7)"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "a.jsonl"
    with pytest.raises(DataError) as caught:
        RowStream(name_shards([missing], tmp_path), seed=0, shuffle=True)
    assert str(caught.value) == f"{missing}: cannot be read: No such file or directory"


@pytest.mark.usefixtures("one_at_a_time")
def test_a_file_that_vanishes_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("1\n2\n")
    rows = RowStream(name_shards([path], tmp_path), seed=0, shuffle=True)
    going = rows.rows(0, rows.start_positions())
    next(going)
    path.unlink()
    with pytest.raises(DataError) as caught:
        next(going)
    assert str(caught.value) == f"{path}: cannot be read: No such file or directory"


@pytest.mark.usefixtures("one_at_a_time")
@pytest.mark.parametrize(
    ("content", "how"),
    [
        (b"1\n2\n3\n4", "it has 7 bytes instead of 6"),
        (b"1\n2\n", "it has 4 bytes instead of 6"),
        (b"", "it has 0 bytes instead of 6"),
        (b"1\n22\n3", "line 2 is no longer at byte 2"),
        (b"1\n\n2\n3", "line 2 is no longer at byte 2"),
    ],
)
def test_a_file_that_changes_while_it_is_read(tmp_path: Path, content: bytes, how: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n2\n3\n")
    rows = RowStream(name_shards([path], tmp_path), seed=0, shuffle=False)
    going = rows.rows(0, rows.start_positions())
    next(going)
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        next(going)
    assert str(caught.value) == f"{path}: changed while it was read: {how}; start the run again"


@pytest.mark.usefixtures("one_at_a_time")
def test_a_file_that_is_replaced_while_it_is_read(tmp_path: Path) -> None:
    path, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    path.write_bytes(b"1\n2\n3\n")
    rows = RowStream(name_shards([path], tmp_path), seed=0, shuffle=False)
    going = rows.rows(0, rows.start_positions())
    next(going)
    other.write_bytes(b"4\n5\n")
    other.replace(path)
    with pytest.raises(DataError) as caught:
        next(going)
    how = "it has 4 bytes instead of 6"
    assert str(caught.value) == f"{path}: changed while it was read: {how}; start the run again"


@pytest.mark.parametrize("shuffle", [False, True])
def test_rows_read_ahead_are_those_before_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffle: bool
) -> None:
    monkeypatch.setattr(stream, "_BYTES_AHEAD", 3 * 8)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(b"%7d\n" % number for number in range(10)))
    rows = RowStream(name_shards([path], tmp_path), seed=0, shuffle=shuffle)
    expected = one_epoch(rows)
    going = rows.rows(0, rows.start_positions())
    next(going)
    path.write_bytes(b"")
    assert texts(islice(going, 2)) == expected[1:3]
    with pytest.raises(DataError, match="changed while it was read: it has 0 bytes instead of 80"):
        next(going)


@given(
    sizes=st.lists(st.integers(0, 30), max_size=20),
    shuffle=st.booleans(),
    rows_ahead=st.integers(1, 8),
    bytes_ahead=st.integers(1, 80),
    longest=st.integers(5, 40),
)
@settings(max_examples=60, deadline=None)
def test_how_far_is_read_ahead_changes_nothing(
    sizes: list[int], shuffle: bool, rows_ahead: int, bytes_ahead: int, longest: int
) -> None:
    lines = [b"x" * size + b"\n" for size in sizes]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder, "a.jsonl")
        path.write_bytes(b"".join(lines))
        patch.setattr(shard_reader, "MAX_LINE_BYTES", longest)
        rows = RowStream(name_shards([path], Path(folder)), seed=0, shuffle=shuffle)
        usual = list(rows.rows(0, rows.start_positions()))
        patch.setattr(stream, "_ROWS_AHEAD", rows_ahead)
        patch.setattr(stream, "_BYTES_AHEAD", bytes_ahead)
        assert list(rows.rows(0, rows.start_positions())) == usual
    for row in usual:
        line = lines[row.line - 1]
        is_long = len(line) > longest
        assert (row.text, row.num_bytes) == ((b"", len(line)) if is_long else (line, None))
        assert row.byte == sum(map(len, lines[: row.line - 1]))
    assert len(usual) == sum(size > 0 for size in sizes)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_file_that_gives_less_than_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, shuffle: bool
) -> None:
    pread = os.pread
    with shards([12]) as (root, paths):
        rows = RowStream(name_shards(paths, root), seed=0, shuffle=shuffle)
        expected = one_epoch(rows)
        monkeypatch.setattr(os, "pread", lambda file, size, start: pread(file, min(size, 2), start))
        assert one_epoch(rows) == expected
    assert sorted(expected) == sorted(f"0:{line}" for line in range(1, 13))


@pytest.mark.parametrize("max_open", [2, 3])
@pytest.mark.parametrize("shuffle", [False, True])
def test_files_stay_open_while_their_rows_are_read(
    monkeypatch: pytest.MonkeyPatch, max_open: int, shuffle: bool
) -> None:
    def num_open() -> int:
        targets = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return sum(target.parent == root for target in targets)

    monkeypatch.setattr(stream, "MAX_OPEN", max_open)
    with shards([30, 30, 30]) as (root, paths):
        rows = RowStream(name_shards(paths, root), seed=0, shuffle=shuffle)
        going = rows.rows(0, rows.start_positions())
        numbers = [num_open() for _ in going]
        assert max(numbers) == (3 if max_open == 3 else 0)
        assert num_open() == 0
        assert rows.pending_rows({"1.jsonl": FilePosition(0, 0, (Pending(0, 7, 0),))})
        assert num_open() == 0


def test_a_line_that_is_too_long_is_never_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_reader, "MAX_LINE_BYTES", 10)
    monkeypatch.setattr(line_index, "_CHUNK_BYTES", 4)
    path = tmp_path / "a.jsonl"
    # The third line is blank but for its last byte.
    path.write_bytes(b"123456789\n1234567890\n" + b" " * 20 + b"x\n" + b" " * 21 + b"\n1")
    rows = RowStream(name_shards([path], tmp_path), seed=0, shuffle=False)
    found = [(row.line, row.text, row.num_bytes) for row in rows.rows(0, rows.start_positions())]
    assert found == [(1, b"123456789\n", None), (2, b"", 11), (3, b"", 22), (5, b"1", None)]


@given(sizes=SIZES, seed=st.integers(0, 2**40), epoch=st.integers(0, 5), shuffle=st.booleans())
@settings(max_examples=40, deadline=None)
def test_every_row_comes_once_in_an_epoch(
    sizes: list[int], seed: int, epoch: int, shuffle: bool
) -> None:
    with shards(sizes) as (root, paths):
        rows = RowStream(name_shards(paths, root), seed, shuffle)
        found = one_epoch(rows, epoch)
        in_file_order = texts(
            row
            for path in paths
            for row in RowStream(name_shards([path], root), 0, False).rows(
                0, {path.name: FilePosition(0, 0)}
            )
        )
    assert rows.num_rows == sum(sizes)
    assert sorted(found) == sorted(in_file_order)
    assert len(set(found)) == sum(sizes)
    if not shuffle:
        assert found == in_file_order


@given(sizes=SIZES, seed=st.integers(0, 99), data=st.data(), shuffle=st.booleans())
@settings(max_examples=40, deadline=None)
def test_going_on_gives_exactly_the_rest(
    sizes: list[int], seed: int, data: st.DataObject, shuffle: bool
) -> None:
    with shards(sizes) as (root, paths):
        whole = RowStream(name_shards(paths, root), seed, shuffle)
        expected = one_epoch(whole, epoch=3)
        done = data.draw(st.integers(0, sum(sizes)))
        positions = after(whole, 3, done, whole.start_positions())
        resumed = RowStream(name_shards(paths, root), seed, shuffle)
        assert texts(resumed.rows(3, positions)) == expected[done:]


def test_the_order_is_keyed() -> None:
    with shards([20, 20]) as (root, paths):
        first = one_epoch(RowStream(name_shards(paths, root), seed=1, shuffle=True), epoch=0)
        again = one_epoch(RowStream(name_shards(paths, root), seed=1, shuffle=True), epoch=0)
        other_epoch = one_epoch(RowStream(name_shards(paths, root), seed=1, shuffle=True), epoch=1)
        other_seed = one_epoch(RowStream(name_shards(paths, root), seed=2, shuffle=True), epoch=0)
    assert first == again
    assert len({tuple(order) for order in (first, other_epoch, other_seed)}) == 3


def test_the_order_is_that_of_earlier_versions() -> None:
    """Checkpoints hold places in it."""
    with shards([4, 3, 5]) as (root, paths):
        rows = RowStream(name_shards(paths, root), seed=7, shuffle=True)
        assert (
            " ".join(one_epoch(rows, epoch=2)) == "0:4 1:2 2:2 2:1 2:3 1:3 2:5 2:4 1:1 0:1 0:2 0:3"
        )


def test_an_epoch_can_be_run_again_after_another() -> None:
    with shards([9, 5]) as (root, paths):
        rows = RowStream(name_shards(paths, root), seed=1, shuffle=True)
        first = one_epoch(rows, epoch=0)
        one_epoch(rows, epoch=1)
        assert one_epoch(rows, epoch=0) == first


def test_files_are_mixed_in_proportion_to_what_is_left() -> None:
    with shards([300, 100]) as (root, paths):
        order = one_epoch(RowStream(name_shards(paths, root), seed=0, shuffle=True))
    from_second = [text.startswith("1:") for text in order]
    # 25 are expected in each hundred, with a standard deviation of about 4.
    counts = [sum(from_second[start : start + 100]) for start in (0, 100, 200, 300)]
    assert all(9 <= count <= 41 for count in counts)


def test_two_files_of_one_size_have_orders_of_their_own() -> None:
    with shards([30, 30]) as (root, paths):
        order = one_epoch(RowStream(name_shards(paths, root), seed=0, shuffle=True))
    lines = [[text[2:] for text in order if text[0] == file] for file in "01"]
    assert lines[0] != lines[1]


def test_a_file_that_the_positions_do_not_know_is_done_for_this_epoch() -> None:
    with shards([4, 6]) as (root, paths):
        rows = RowStream(name_shards(paths, root), seed=0, shuffle=True)
        found = texts(rows.rows(0, {"0.jsonl": FilePosition(0, 0)}))
        assert sorted(found) == ["0:1", "0:2", "0:3", "0:4"]
        known = rows.fill_missing_positions(
            {"0.jsonl": FilePosition(3, 1), "gone": FilePosition(9, 0)}
        )
        assert known == {"0.jsonl": FilePosition(3, 1), "1.jsonl": FilePosition(6, 0)}
        assert len(one_epoch(rows, epoch=1)) == 10


def test_a_file_that_was_added_joins_those_that_are_behind() -> None:
    with shards([4, 6, 5]) as (root, paths):
        rows = RowStream(name_shards(paths, root), seed=0, shuffle=True)
        known = {
            "0.jsonl": FilePosition(3, 1, epoch=2),
            "1.jsonl": FilePosition(2, 0, epoch=1),
        }
        added = {"2.jsonl": FilePosition(5, 0, epoch=1)}
        assert rows.fill_missing_positions(known) == known | added


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content + b"\n",
        lambda content: content[:-1],
        lambda content: b"x" + content[1:],
        lambda content: content[:-1] + b"x",
        lambda content: content[:200_000] + b"x" + content[200_001:],
    ],
    ids=["longer", "shorter", "begin", "end", "middle"],
)
def test_a_changed_file_has_another_fingerprint(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    path, content = tmp_path / "a", b"abcdefg\n" * 50_000
    path.write_bytes(content)
    before = RowStream(name_shards([path], tmp_path), seed=0, shuffle=True).fingerprints()
    path.touch()
    assert RowStream(name_shards([path], tmp_path), seed=1, shuffle=True).fingerprints() == before
    path.write_bytes(change(content))
    after_change = RowStream(name_shards([path], tmp_path), seed=0, shuffle=True).fingerprints()
    assert before.keys() == after_change.keys() == {"a"}
    assert before["a"] != after_change["a"]
