"""The report of a recorded run with two attempts, as a reader uses it."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from llada_sft.report.command import write_report
from llada_sft.report.html import MAX_BYTES
from llada_sft.training.log.metrics_csv import read_metrics
from tests.browser.conftest import PHONE, WIDE, OpenPage
from tests.report_runs import RECORDED, write_run

TABS = ["Curves", "Data", "Timeline", "Answers", "Config"]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_report([RECORDED], tmp_path_factory.mktemp("report") / "report.html")
    assert path.stat().st_size < MAX_BYTES
    return path


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def logged(column: str) -> list[tuple[int, str]]:
    rows = read_metrics(RECORDED.metrics)
    return [(int(row["step"]), row[column]) for row in rows if row[column]]


def five_digits(text: str) -> str:
    return f"{float(text):.5g}"


def test_a_hover_shows_the_numbers_of_the_file(report: Path, open_page: OpenPage) -> None:
    page = open_page(report)
    loss = page.locator("section.card.wide").first
    over = loss.locator(".u-over")
    box = over.bounding_box()
    assert box is not None
    steps = logged("loss")
    for step, value in (steps[0], steps[len(steps) // 2], steps[-1]):
        share = (step - steps[0][0]) / (steps[-1][0] - steps[0][0])
        page.mouse.move(box["x"] + share * box["width"] - (share == 1), box["y"] + 20)
        expect(loss.locator("h2 .at")).to_have_text(f"step {step}")
        expect(loss.locator(".legend .value").first).to_have_text(five_digits(value))
    # All charts show the same step.
    texts = page.locator("section h2 .at").all_inner_texts()
    assert set(texts) == {f"step {steps[-1][0]}"}


def test_the_last_rows_have_every_digit(report: Path, open_page: OpenPage) -> None:
    page = open_page(report)
    page.get_by_text("The last 25 logged steps").click()
    text = page.locator(".numbers").inner_text()
    for column in ("loss", "lr", "gradient_norm", "validation_loss", "tokens_per_s"):
        assert logged(column)[-1][1] in text


def test_a_drag_zooms_all_charts_and_a_double_click_shows_all(
    report: Path, open_page: OpenPage
) -> None:
    page = open_page(report)
    expect(page.locator("#zoomed")).to_have_text("steps 4 to 160")
    box = page.locator(".u-over").first.bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.25, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, y, steps=4)
    page.mouse.up()
    expect(page.locator("#zoomed")).to_have_text("steps 43 to 82")
    ranges = page.evaluate("[...charts].map((c) => [c.scales.x.min, c.scales.x.max].join())")
    assert len(ranges) > 5
    assert len(set(ranges)) == 1
    # The zoom is the reader's: it survives a look at another part.
    tab(page, "Config")
    tab(page, "Curves")
    expect(page.locator("#zoomed")).to_have_text("steps 43 to 82")
    page.locator(".u-over").first.dblclick()
    expect(page.locator("#zoomed")).to_have_text("steps 4 to 160")


def test_the_keyboard_reads_zooms_and_changes_tabs(report: Path, open_page: OpenPage) -> None:
    page = open_page(report)
    page.locator(".plot").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("h2 .at").first).to_have_text("step 4")
    page.keyboard.press("ArrowRight")
    expect(page.locator("h2 .at").first).to_have_text("step 8")
    page.keyboard.press("+")
    expect(page.locator("#zoomed")).to_have_text("steps 43 to 121")
    page.keyboard.press("Escape")
    expect(page.locator("#zoomed")).to_have_text("steps 4 to 160")
    page.get_by_role("tab", name="Curves").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Data")).to_be_focused()
    expect(page.get_by_role("tab", name="Data")).to_have_attribute("aria-selected", "true")


def test_lines_and_axes_are_switched(report: Path, open_page: OpenPage) -> None:
    page = open_page(report)
    page.get_by_role("button", name="validation").first.click()
    shown = "[...charts][0].series.slice(1).map((one) => one.show)"
    assert page.evaluate(shown) == [True, True, False]
    page.get_by_label("Logarithmic loss").check()
    assert page.evaluate("[...charts][0].scales.y.distr") == 3
    assert page.evaluate(shown) == [True, True, False]
    page.get_by_label("Smoothing").fill("0")
    assert page.evaluate(shown) == [True, False]


def test_every_tab_has_its_part(report: Path, open_page: OpenPage) -> None:
    page = open_page(report)
    for name in TABS:
        tab(page, name)
        expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")
    tab(page, "Data")
    expect(page.get_by_text("not_json")).to_be_visible()
    expect(page.get_by_role("heading", name="Mixture")).to_be_visible()
    tab(page, "Timeline")
    expect(page.get_by_role("heading", name="Attempt 1")).to_contain_text("killed")
    expect(page.get_by_role("heading", name="Attempt 2")).to_contain_text("finished")
    assert page.locator(".line .checkpoint").count() == 4
    tab(page, "Config")
    page.get_by_role("searchbox").fill("warmup")
    expect(page.locator(".keys")).to_have_text("optim.warmup_steps50")


def test_answers_are_written_pass_by_pass(report: Path, open_page: OpenPage) -> None:
    page = open_page(report.as_uri() + "#answers")
    answer = page.locator("section.answer .coloured").first
    finished = answer.inner_text()
    tokens = answer.locator(".token")
    colours = tokens.evaluate_all("all => all.map((one) => getComputedStyle(one).backgroundColor)")
    assert len(set(colours)) > 1
    page.get_by_label("After pass").fill("2")
    assert answer.locator(".token").count() <= 2
    assert answer.locator(".masked").count() >= len(finished) - 2
    assert len(answer.inner_text()) == len(finished)
    page.locator("#answers-step").fill("0")
    expect(page.get_by_text("Answers of step 20.")).to_be_visible()


@pytest.mark.parametrize("name", TABS)
@pytest.mark.parametrize(
    ("viewport", "scheme"), [(WIDE, "light"), (PHONE, "light"), (PHONE, "dark")]
)
def test_no_part_is_wider_than_the_screen(
    report: Path, open_page: OpenPage, viewport: dict[str, int], scheme: str, name: str
) -> None:
    page = open_page(f"{report.as_uri()}#{name.lower()}", viewport, color_scheme=scheme)
    expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_the_theme_follows_the_system_until_it_is_chosen(report: Path, open_page: OpenPage) -> None:
    page = open_page(report, color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(15, 19, 23)"
    page.get_by_role("button", name="Theme: auto").click()
    expect(page.get_by_role("button", name="Theme: light")).to_be_visible()
    assert page.evaluate(background) == "rgb(245, 246, 248)"


def test_two_runs_are_drawn_over_one_another(tmp_path: Path, open_page: OpenPage) -> None:
    rows = "step,loss\n10,3.5\n200,1.25\n"
    config = RECORDED.config.read_text().replace("lr: 0.003", "lr: 0.001")
    other = write_run(tmp_path / "other", metrics=rows, config=config)
    page = open_page(write_report([RECORDED, other], tmp_path / "two.html"))
    legend = page.locator("section.card.wide .legend").first
    expect(legend).to_contain_text("other: training")
    expect(legend).to_contain_text("report_run: training")
    expect(page.locator("#zoomed")).to_have_text("steps 4 to 200")
    page.get_by_title("Draw its curves, or not").nth(1).click()
    expect(page.locator("#zoomed")).to_have_text("steps 4 to 160")
    tab(page, "Config")
    page.get_by_label("Only what differs").check()
    expect(page.locator(".keys")).to_have_text("optim.lr0.003other: 0.001")
    page.get_by_label("Details of").select_option("other")
    expect(page.get_by_role("heading", level=1)).to_have_text("other")
