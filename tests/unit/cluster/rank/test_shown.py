"""Where the line of a mistake goes: to the terminal, or to the log of the rank that is shown."""

from pathlib import Path

import pytest

from llada_sft.cluster.rank.shown import SHOWN, say_mistake


def test_a_rank_prints_its_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SHOWN, raising=False)
    say_mistake(ValueError("mend this"), tmp_path / "rank_0.log")
    assert capsys.readouterr().err == "mend this\n"
    assert not (tmp_path / "rank_0.log").exists()


def test_what_the_launcher_is_going_to_print_is_in_the_log_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SHOWN, "1")
    log = tmp_path / "rank_0.log"
    log.write_text("step 1\n")
    say_mistake(ValueError("mend \ud800 this"), log)
    assert log.read_text() == "step 1\nmend \\ud800 this\n"
    assert capsys.readouterr().err == ""
    # A log that cannot be written: better twice than not at all.
    say_mistake(ValueError("mend this"), tmp_path / "none" / "rank_0.log")
    assert capsys.readouterr().err == "mend this\n"
