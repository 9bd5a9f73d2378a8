"""What `data.train` names: one dataset or several sources, and the names of their shards."""

from pathlib import Path

import pytest

from llada_sft.config.sections.data import DataConfig, SourceConfig
from llada_sft.data.sources import NamedShard, Source, list_sources
from llada_sft.data.storage.files import RemoteFile
from llada_sft.errors import ConfigError, DataError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("chat/a.jsonl", "chat/b.jsonl", "more/code/a.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def names(source: Source) -> list[str]:
    return [one.name for one in source.shards]


def test_one_path(data: Path) -> None:
    (source,) = list_sources(DataConfig(train=f"{data}/chat"), epochs=3)
    assert names(source) == ["a.jsonl", "b.jsonl"]
    assert (source.name, source.epochs) == ("", 3)
    assert source.shards[1].shard == data / "chat/b.jsonl"


def test_a_list_is_one_dataset_named_below_the_common_folder(data: Path) -> None:
    (source,) = list_sources(DataConfig(train=(f"{data}/more/code", f"{data}/chat")), epochs=3)
    assert names(source) == ["more/code/a.jsonl", "chat/a.jsonl", "chat/b.jsonl"]
    (alone,) = list_sources(DataConfig(train=(f"{data}/chat",)), epochs=3)
    assert names(alone) == ["a.jsonl", "b.jsonl"]


def test_a_list_with_remote_shards_has_whole_urls(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = RemoteFile("s3://bucket/train/a.jsonl", 1, "1")
    monkeypatch.setattr("llada_sft.data.shards.list_remote", lambda path, root: [remote])
    (source,) = list_sources(DataConfig(train=(f"{data}/more/code", "s3://bucket/train")), epochs=1)
    assert names(source) == [f"{data}/more/code/a.jsonl", "s3://bucket/train/a.jsonl"]


def test_a_shard_that_is_named_twice(data: Path) -> None:
    with pytest.raises(DataError) as caught:
        list_sources(DataConfig(train=(f"{data}/chat", f"{data}/*/a.jsonl")), epochs=1)
    message = f"{data}/chat/a.jsonl: named twice by data.train; remove one of its paths"
    assert str(caught.value) == message


def test_sources_by_name(data: Path) -> None:
    config = DataConfig(
        train={
            "chat": SourceConfig(path=f"{data}/chat", weight=0.7),
            "code": SourceConfig(
                path=f"{data}/more/code", weight=0.3, epochs=5, format="text", fields={"text": "x"}
            ),
        },
        fields={"prompt": "question"},
    )
    chat, code = list_sources(config, epochs=2)
    assert (chat.format, chat.rules.fields) == ("auto", {"prompt": "question"})
    assert (code.format, code.rules.fields) == ("text", {"text": "x"})
    assert chat.owns("chat/a.jsonl") and not chat.owns("code/a.jsonl")
    assert names(chat) == ["chat/a.jsonl", "chat/b.jsonl"]
    assert names(code) == ["code/a.jsonl"]
    assert (chat.weight, chat.epochs) == (0.7, 2)
    assert (code.weight, code.epochs) == (0.3, 5)


def test_a_source_owns_its_files_alone(data: Path) -> None:
    a, ab = (Source(name, ()) for name in ("a", "ab"))
    assert a.owns("a/1.jsonl") and not a.owns("ab/1.jsonl") and not a.owns("a")
    assert ab.owns("ab/1.jsonl") and not ab.owns("a/1.jsonl")
    # One dataset without a name has no prefix.
    assert Source("", ()).owns("a/1.jsonl")


def test_the_shards_of_a_rank(data: Path) -> None:
    (source,) = list_sources(DataConfig(train=f"{data}/chat"), epochs=1)
    assert names(source.of_rank(1, 2)) == ["b.jsonl"]
    assert source.of_rank(0, 1) == source


def test_fewer_shards_than_ranks_names_the_source() -> None:
    source = Source("code", (NamedShard("code/a.jsonl", Path("d/a.jsonl")),), epochs=1)
    with pytest.raises(ConfigError) as caught:
        source.of_rank(0, 2)
    assert str(caught.value) == (
        "data.train.code: 1 shards for 2 ranks in d: use at most 1 ranks,"
        " or run  llada-sft shard d d_2 --num-shards 2"
    )
