"""Secrets of the environment in what a run keeps: struck out whole."""

import pytest

from llada_sft.cluster.launch.snapshot import redact

SHORT, LONG = "hunter2-2", "hunter2-2-and-more"


@pytest.fixture(autouse=True)
def _no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("A_TOKEN", "B_TOKEN", "PLAIN"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("names", [("A_TOKEN", "B_TOKEN"), ("B_TOKEN", "A_TOKEN")])
def test_of_two_secrets_of_which_one_contains_the_other_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]
) -> None:
    for name, secret in zip(names, (SHORT, LONG), strict=True):
        monkeypatch.setenv(name, secret)
    assert redact(f"a {LONG} b {SHORT} c {SHORT}{LONG}") == "a *** b *** c ******"


def test_every_place_is_struck_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", SHORT)
    assert redact(f"{SHORT}\n--key={SHORT}") == "***\n--key=***"


def test_the_shortest_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "12345678")
    assert redact("a 12345678") == "a ***"


@pytest.mark.parametrize("value", ["", "1", "true", "1234567"])
def test_flags_and_numbers_are_no_secrets(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("A_TOKEN", value)
    assert redact("1234567 is true") == "1234567 is true"


def test_other_variables_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIN", SHORT)
    assert redact(f"a {SHORT}") == f"a {SHORT}"
