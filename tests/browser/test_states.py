"""Runs in any state, runs that attack their reader, and a run in progress."""

import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import expect

from llada_sft.report.command import write_report
from llada_sft.report.html import data_of, page_of
from llada_sft.report.serve import ReportServer
from tests.browser.conftest import PHONE, OpenPage
from tests.report_runs import ANSWER, START, hostile_run, write_run

PARTS = ["curves", "data", "timeline", "answers", "config"]


@pytest.mark.parametrize("part", PARTS)
def test_hostile_texts_are_shown_and_do_nothing(
    tmp_path: Path, open_page: OpenPage, part: str
) -> None:
    run = hostile_run(tmp_path / "<img src=x onerror=attacked=4>")
    report = write_report([run], tmp_path / "report.html")
    page = open_page(f"{report.as_uri()}#{part}", PHONE)
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("window.attacked") is None
    # Nothing but the page's own elements; the texts are there to be read.
    assert page.locator("img, iframe, object, main script").count() == 0
    expect(page.get_by_role("heading", level=1)).to_contain_text("<img src=x onerror=")
    text = page.locator("main").inner_text()
    assert "<script>" in text
    assert "\u202e" not in text
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_a_run_with_nothing_but_a_journal(tmp_path: Path, open_page: OpenPage) -> None:
    ended = {"event": "ended", "attempt": 1, "cause": "out of memory", "detail": "node1 had none"}
    run = write_run(tmp_path / "run", journal=[START, ended])
    page = open_page(write_report([run]))
    expect(page.get_by_text("No step has been logged yet.")).to_be_visible()
    expect(page.locator("header .badge")).to_have_text("out of memory")
    page.get_by_role("tab", name="Timeline").click()
    expect(page.get_by_role("heading", name="Attempt 1")).to_contain_text("out of memory")
    for name in ("Data", "Answers", "Config"):
        page.get_by_role("tab", name=name).click()
        expect(page.locator(".empty")).to_be_visible()


def test_what_cannot_be_read_is_a_line_on_the_page(tmp_path: Path, open_page: OpenPage) -> None:
    run = write_run(
        tmp_path / "run",
        metrics="step,loss\n1,2.5\n2,nan\nhalf a li\n3,inf\n4,1.5\n",
        journal=[START],
        config="run: [",
    )
    page = open_page(write_report([run]))
    problems = page.locator(".problems")
    expect(problems).to_contain_text("metrics.csv: 1 line cannot be read, and is not shown")
    expect(problems).to_contain_text("config.yaml")
    expect(page.locator(".note.warning")).to_have_text("loss: nan at step 2, inf at step 3")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A run in progress, and the address at which its page is served."""
    run = write_run(
        tmp_path / "run",
        metrics="step,loss\n10,2.5\n20,2.0\n30,1.5\n",
        journal=[START],
        config="optim: {lr: 0.003}\ntrain: {max_steps: 400}\n",
    )
    page, data = partial(page_of, [run], True), partial(data_of, [run], True)
    server = ReportServer(0, page, data)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield run.path, server.address
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_run_in_progress_is_shown_as_it_goes(
    served: tuple[Path, str], open_page: OpenPage
) -> None:
    """The zoom, the tab and what is typed are the reader's: newer data leave them alone."""
    folder, address = served
    page = open_page(address)
    expect(page.locator("header .badge")).to_have_text("running")
    page.evaluate("zoomTo(12, 28)")
    page.get_by_label("Smoothing").focus()
    with (folder / "logs/metrics.csv").open("a") as file:
        file.write("40,0.75\n")
    page.evaluate("refresh()")
    expect(page.locator("header dl")).to_contain_text("0.75")
    expect(page.locator("#zoomed")).to_have_text("steps 12 to 28")
    expect(page.get_by_label("Smoothing")).to_be_focused()
    page.get_by_role("tab", name="Config").click()
    page.get_by_role("searchbox").fill("optim")
    (folder / "logs/answers.jsonl").write_text(json.dumps({"step": 40, **ANSWER}) + "\n")
    with (folder / "logs/metrics.csv").open("a") as file:
        file.write("50,0.5\n60,0.2")
    page.evaluate("refresh()")
    expect(page.locator("header dl")).to_contain_text("50 of 400")
    expect(page.get_by_role("searchbox")).to_have_value("optim")
    expect(page.get_by_role("searchbox")).to_be_focused()
    expect(page.get_by_role("tab", name="Config")).to_have_attribute("aria-selected", "true")
    page.get_by_role("tab", name="Answers").click()
    expect(page.locator(".answer .plain")).to_have_text("ab")
