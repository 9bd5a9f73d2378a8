"""checkpoint.json proves itself: each of its bits counts."""

import json
from pathlib import Path

import pytest

from llada_sft.training.checkpoint.checksums import FileRecord
from llada_sft.training.checkpoint.manifest import (
    MANIFEST,
    ManifestError,
    first_difference,
    read_manifest,
    records_of,
    sealed,
)

RECORDS = {"b": FileRecord.of(b"bb"), "a/c": FileRecord.of(b"")}
CONTENT = {"step": 7, "world_size": 2, "versions": {"torch": "2.13.0"}, "schedule": {"total": 9}}


def test_what_is_sealed_is_read(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(sealed(CONTENT, RECORDS))
    manifest = read_manifest(tmp_path)
    assert {key: manifest[key] for key in CONTENT} == CONTENT
    assert manifest["files"] == {"a/c": 0, "b": 2}
    assert records_of(manifest) == RECORDS
    # For people, and for other programs.
    assert json.loads((tmp_path / MANIFEST).read_text()) == manifest


def test_every_bit_counts(tmp_path: Path) -> None:
    text = sealed(CONTENT, RECORDS).encode()
    for bit in range(8 * len(text)):
        changed = bytearray(text)
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / MANIFEST).write_bytes(changed)
        with pytest.raises(ManifestError):
            read_manifest(tmp_path)


def test_every_length_counts(tmp_path: Path) -> None:
    text = sealed(CONTENT, RECORDS)
    for changed in [*(text[:size] for size in range(len(text))), f"{text}\n", f" {text}"]:
        (tmp_path / MANIFEST).write_text(changed)
        with pytest.raises(ManifestError):
            read_manifest(tmp_path)


def test_one_of_an_older_version(tmp_path: Path) -> None:
    older = {"step": 7, "world_size": 2, "versions": {}, "files": {"a": 3}}
    (tmp_path / MANIFEST).write_text(json.dumps(older, indent=1))
    assert read_manifest(tmp_path) == older
    assert records_of(older) == {"a": (3, None)}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("\0" * 99, "holds nothing but zeros"),
        ('{"step": 2, "wor', "is not JSON: torn or changed"),
        ("[" * 100_000, "is not JSON: torn or changed"),
        ("null", "is not a checkpoint's"),
        ('{"step": "7", "world_size": 2, "files": {}}', "is not a checkpoint's"),
        ('{"step": 7, "world_size": 2, "files": {"a": null}}', "is not a checkpoint's"),
        ('{"step": 7, "world_size": 2, "files": ["a"]}', "is not a checkpoint's"),
        (
            '{"step": 7, "world_size": 2, "files": {}, "checksums": {}}',
            "is not what was written: its own checksum is missing",
        ),
        (
            sealed(CONTENT, RECORDS).replace('"step": 7', '"step": 8'),
            "is not what was written: its own checksum differs",
        ),
    ],
)
def test_what_is_said(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ManifestError) as caught:
        read_manifest(tmp_path)
    assert str(caught.value) == why


def test_the_first_file_that_differs_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/c").touch()
    (tmp_path / "b").write_bytes(b"bb")
    (tmp_path / MANIFEST).write_text(sealed(CONTENT, RECORDS))
    assert first_difference(tmp_path) == ""
    for changed in (b"bc", b"b", b"bbb"):
        (tmp_path / "b").write_bytes(changed)
        assert first_difference(tmp_path) == f"{tmp_path}/b: is not what was written"
    (tmp_path / "b").unlink()
    assert first_difference(tmp_path) == (
        f"{tmp_path}/b: cannot be read: No such file or directory"
    )
    (tmp_path / MANIFEST).write_text("{")
    assert first_difference(tmp_path) == f"{tmp_path / MANIFEST}: is not JSON: torn or changed"
