"""The page of many runs in a browser (where Chromium is found): hostile prompts, the keyboard alone, both themes, a telephone."""

import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from made_runs import fail, make_run
from test_report import HOSTILE

from alignbench.evaluation.crossed import Bootstrap
from alignbench.reporting import write
from alignbench.table import compared, found_in

pytestmark = pytest.mark.browser
expect: Any = pytest.importorskip("playwright.sync_api").expect
sync_playwright: Any = pytest.importorskip("playwright.sync_api").sync_playwright
Axe: Any = pytest.importorskip("axe_playwright_python.sync_playwright").Axe

FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
PAYLOADS = [
    "<script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title = 'owned'\">",
    "<svg onload=alert(1)>",
    "\" autofocus onfocus=alert(1) x=\"",
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "<a href=javascript:alert(1)>go</a>",
    "</script><script>alert(1)</script>",
    "<!--<script>alert(1)</script>",
    "</style><style>* { display: none }</style>",
    "<link rel=stylesheet href=//example.org/a.css>",
    "<meta http-equiv=refresh content=\"0;url=//example.org\">",
    "<base href=//example.org>",
    "<form action=//example.org><button>send</button></form>",
    "<dialog open>hello</dialog>",
    "<input type=search id=pictures>",
    "{\"seed\": 0, \"picture\": \"</script>\"}",
    "${alert(1)} #{alert(1)} {{constructor.constructor('alert(1)')()}}",
    "\\x3cscript\\x3ealert(1)\\u003c/script\\u003e",
    "data:text/html,<script>alert(1)</script>",
    "<details open ontoggle=alert(1)>",
]  # fmt: skip
PROMPTS = [*HOSTILE, *PAYLOADS]
TITLE = "Hostile </title><script>document.title = 'owned'</script>"
FOCUSABLE = 'a[href], button:not([disabled]), input, select, summary, [tabindex="0"]'
SEEN = f"""() => [...document.querySelectorAll('{FOCUSABLE}')].filter((each) =>
    each.checkVisibility({{ visibilityProperty: true }}) && !each.closest("dialog:not([open])"))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=[*FLAGS.split(), "--disable-sync"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a page of two methods with two seeds, one of which failed, and thirty prompts."""
    folder = tmp_path_factory.mktemp("runs")
    assert len(PROMPTS) == 30
    for method in ("ddpo", "d3po"):
        for seed in range(3):
            run = make_run(folder, method, seed, PROMPTS, pictured=len(PROMPTS))
    fail(run, f"ValueError: {PAYLOADS[1]}")
    found = list(found_in([folder]))
    made = compared(found, "", Bootstrap(replicates=100, level=0.95, seed=0), 0.8)
    claims: list[Any] = [{"says": each, "source": each, "verdict": each, "value": 0.1, "low": 0.0, "high": 0.2} for each in PAYLOADS]
    write(found, made, folder / "report", title=TITLE, intro="\n\n".join(PAYLOADS), claims=claims)
    return (folder / "report" / "report.html").as_uri()


class Opened:
    """A page, and all that it did which it must not."""

    def __init__(self, browser: Any, report: str, scheme: str = "light", width: int = 1280) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
        self.page, self.troubles = self.context.new_page(), list[str]()
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("console", lambda message: self.troubles.append(f"{message.type}: {message.text}"))
        self.page.on("dialog", lambda dialog: (self.troubles.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.goto(report)

    def _asked(self, address: str) -> None:
        if not address.startswith(("file:", "data:")):
            self.troubles.append(address)


@pytest.fixture
def opened(browser: Any, report: str) -> Iterator[Opened]:
    opened = Opened(browser, report)
    yield opened
    assert opened.page.title() == f"{TITLE}: alignbench"
    opened.context.close()
    assert opened.troubles == []


def test_prompts_are_text_and_nothing_runs(opened: Opened) -> None:
    page = opened.page
    lines = page.locator(".prompts > li")
    expect(lines).to_have_count(len(PROMPTS))
    for n, prompt in enumerate(PROMPTS):
        if len(prompt) < 160 and "\x00" not in prompt:
            assert page.evaluate("n => document.querySelectorAll('.prompts > li')[n].querySelector('.prompt').textContent", n) == prompt
    assert page.evaluate("document.querySelectorAll('.prompts script, .prompts a, .prompts form, .prompts dialog, link, base').length") == 0
    loaded = "[...document.querySelectorAll('.strip img')].map((image) => image.complete && image.naturalWidth)"
    assert set(page.evaluate(loaded)) == {32}
    assert page.evaluate("getComputedStyle(document.querySelector('.strip img')).imageRendering") == "pixelated"


def test_its_policy_stops_what_it_did_not_bring(opened: Opened) -> None:
    page = opened.page
    page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title = 1\"><p style=\"color: red\">x</p>')"
    )
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), { textContent: 'document.title = 2' }))")
    page.wait_for_timeout(100)
    refused = [each for each in opened.troubles if "Content Security Policy" in each]
    assert len(refused) >= 3
    opened.troubles.clear()


def test_the_tab_key_reaches_everything_and_shows_where_it_is(opened: Opened) -> None:
    page = opened.page
    wanted = page.evaluate(f"() => {{ const seen = ({SEEN})(); seen.forEach((each, n) => each.dataset.stop = n); return seen.length; }}")
    assert wanted > 100
    reached = []
    for _ in range(wanted):
        page.keyboard.press("Tab")
        stop, outline = page.evaluate(
            "() => { const s = getComputedStyle(document.activeElement); "
            "return [document.activeElement.dataset.stop, s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0]; }"
        )
        assert outline, stop
        reached.append(int(stop))
    assert reached == list(range(wanted))


def test_every_link_leads_to_its_section(opened: Opened) -> None:
    page = opened.page
    links = page.locator("a[href^='#']")
    assert links.count() >= 9
    for n in range(links.count()):
        links.nth(n).focus()
        target = links.nth(n).get_attribute("href")
        page.keyboard.press("Enter")
        assert page.evaluate("location.hash") == target
        expect(page.locator(str(target))).to_be_in_viewport()


@pytest.mark.parametrize("key", ["Enter", " "])
def test_the_theme_is_turned_by_the_keyboard(opened: Opened, key: str) -> None:
    page, ground = opened.page, "getComputedStyle(document.body).backgroundColor"
    page.get_by_role("button", name="Dark theme").focus()
    for dark in (True, False, True):
        page.keyboard.press(key)
        assert (page.evaluate(ground) == "rgb(21, 22, 24)") == dark
        expect(page.get_by_role("button", name="Dark theme", pressed=dark)).to_be_visible()


def test_a_prompt_is_found(opened: Opened) -> None:
    page = opened.page
    search = page.get_by_label("Find a prompt")
    search.focus()
    page.keyboard.type("RED circle")
    expect(page.get_by_role("status")).to_have_text("1 of 30 prompts")
    expect(page.locator(".prompts > li:visible")).to_have_text(re.compile("a small red circle"))
    search.fill("<script>")
    expect(page.get_by_role("status")).to_have_text(f"{sum('<script>' in each for each in PROMPTS)} of 30 prompts")
    search.fill("no such words")
    expect(page.get_by_role("status")).to_have_text("0 of 30 prompts")
    search.fill("")
    expect(page.locator(".prompts > li:visible")).to_have_count(30)


@pytest.mark.parametrize("key", ["Enter", " "])
def test_a_picture_is_enlarged_walked_through_and_closed(opened: Opened, key: str) -> None:
    page, dialog = opened.page, opened.page.locator("dialog")
    button = page.locator(".prompts > li").nth(0).locator(".enlarge").nth(1)
    button.focus()
    page.keyboard.press(key)
    expect(dialog).to_be_visible()
    names = [page.locator(".prompts > li").nth(0).locator(".who").nth(n).inner_text() for n in range(3)]
    heading = dialog.get_by_role("heading")
    expect(heading).to_have_text(names[1])
    expect(dialog.locator(".prompt")).to_have_text(PROMPTS[0])
    assert dialog.locator("img").bounding_box()["width"] > 300
    before = dialog.locator("img").get_attribute("src")
    page.keyboard.press("ArrowRight")
    expect(heading).to_have_text(names[2])
    assert dialog.locator("img").get_attribute("src") != before
    page.keyboard.press("ArrowRight")  # there is no further one
    expect(heading).to_have_text(names[2])
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(heading).to_have_text("reference")
    expect(dialog.get_by_role("button", name="Previous")).to_be_disabled()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(button).to_be_focused()
    page.keyboard.press(key)
    dialog.get_by_role("button", name="Next").focus()
    page.keyboard.press(key)
    expect(heading).to_have_text(names[2])
    dialog.get_by_role("button", name="Close").focus()
    page.keyboard.press(key)
    expect(dialog).to_be_hidden()


def test_another_seed_shows_its_own_pictures_and_scores(opened: Opened) -> None:
    page = opened.page
    column = page.locator("figure[data-column='1']")
    select = page.locator("select[data-column='1']")
    assert column.nth(0).locator(".who").inner_text().removesuffix(", seed 0") in select.evaluate("each => each.labels[0].textContent")
    before = column.nth(3).locator("img").get_attribute("src")
    select.focus()
    page.keyboard.press("ArrowDown")
    expect(column.nth(3).locator(".who")).to_have_text(re.compile("seed 1$"))
    seeds = json.loads(column.nth(3).get_attribute("data-seeds"))
    expect(column.nth(3).locator(".note")).to_have_text("\n".join(seeds[1]["scores"]), use_inner_text=True)
    assert column.nth(3).locator("img").get_attribute("src") != before
    assert ", seed 1: " in column.nth(3).locator("img").get_attribute("alt")
    page.keyboard.press("ArrowUp")
    assert column.nth(3).locator("img").get_attribute("src") == before


def test_details_open_by_the_keyboard(opened: Opened) -> None:
    page = opened.page
    summaries = page.locator("summary")
    assert summaries.count() >= 4
    for n in range(summaries.count()):
        summaries.nth(n).focus()
        page.keyboard.press("Enter" if n % 2 else " ")
        assert summaries.nth(n).evaluate("each => each.parentElement.open")
    expect(page.get_by_role("region", name="The config of its first seed").first).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window_and_axe_finds_nothing_serious(browser: Any, report: str, scheme: str, width: int) -> None:
    opened = Opened(browser, report, scheme, width)
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach((each) => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert (page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 22, 24)") == (scheme == "dark")
    found = Axe().run(page).response["violations"]
    page.locator(".enlarge").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    found += Axe().run(page).response["violations"]
    serious = [(each["id"], each["nodes"][0]["html"][:200]) for each in found if each["impact"] in ("serious", "critical")]
    opened.context.close()
    assert serious == []
    assert opened.troubles == []


def test_it_reads_without_scripts_too(browser: Any, report: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report)
    expect(page.locator("#theme")).to_be_hidden()
    expect(page.locator(".tools")).to_be_hidden()
    assert page.locator("figure[data-column='1'] img[src]").count() == len(PROMPTS)
    context.close()
