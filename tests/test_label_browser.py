"""A person at the page for labels: a browser driven by its keyboard (where Chromium is found)."""

import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from alignbench.labels import preferences
from alignbench.report.label_page import Server

pytestmark = pytest.mark.browser
expect: Any = pytest.importorskip("playwright.sync_api").expect
sync_playwright: Any = pytest.importorskip("playwright.sync_api").sync_playwright
expect.set_options(timeout=30_000)  # each choice is synced to a disk that other tests may be using

FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
HOSTILE = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\"> & \"quotes\""
GROUPS = 24


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=[*FLAGS.split(), "--disable-sync"])
        yield browser
        browser.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    groups = []
    for group in range(GROUPS):
        names = [f"{group}-{k}.png" for k in range(2 + group % 3)]
        for k, name in enumerate(names):
            Image.new("RGB", (32, 32), (10 * group, 60 * k, 128)).save(tmp_path / "images" / name)
        groups.append({"prompt": HOSTILE if group == 0 else f"prompt {group}", "images": names})
    (tmp_path / "items.json").write_text(json.dumps({"format": 1, "run": "a-run", "groups": groups, "next_step": "Now train."}))
    return tmp_path


class Serving:
    def __init__(self, folder: Path, port: int = 0):
        self.server = Server(folder, port)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.address, self.port = self.server.address, self.server.server_port

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def serving(folder: Path) -> Iterator[Serving]:
    serving = Serving(folder)
    yield serving
    serving.stop()


@pytest.fixture
def page(browser: Any, serving: Serving) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(serving.address)
    expect(page.locator("#count")).to_have_text(re.compile(rf"\d+ of {GROUPS}"))
    yield page
    context.close()
    assert troubles == []


def press(page: Any, key: str, labelled: int) -> None:
    page.keyboard.press(key)
    expect(page.locator("#count")).to_have_text(f"{labelled} of {GROUPS}")
    expect(page.locator("body")).not_to_have_class(re.compile("busy"))


def written(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "preferences.jsonl").read_text().splitlines()]


def test_twenty_choices_an_undo_and_a_reload_lose_nothing(page: Any, folder: Path) -> None:
    pressed: list[dict] = []
    group = 0
    for n, key in enumerate([*"120 2101 0", "u", *"21 0120121"]):
        if n == 15:
            page.reload()
            expect(page.locator("#count")).to_have_text(f"{group} of {GROUPS}")
        if key == "u":
            pressed.append({"undo": True})
            group -= 1
        else:
            pressed.append({"group": group, "best": {"1": 0, "2": 1}.get(key)})
            group += 1
        press(page, key, group)
        expect(page.locator("#prompt")).to_have_text(f"prompt {group}")
        expect(page.locator(".choice")).to_have_count(2 + group % 3)
    assert sum("group" in line for line in pressed) == 20
    assert written(folder) == pressed
    assert preferences(folder) == list({line["group"]: line["best"] for line in pressed if "group" in line}.items())


def test_the_prompt_is_text_and_the_images_are_large_and_sharp(page: Any) -> None:
    expect(page.locator("#prompt")).to_have_text(HOSTILE)
    assert page.locator("#prompt *").count() == 0
    assert page.title() == "Labels: alignbench"
    press(page, "0", 1)
    for image in page.locator(".choice img").all():
        assert image.bounding_box()["width"] > 300
        assert image.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")


def test_a_held_key_and_a_browser_shortcut_choose_nothing_more(page: Any, folder: Path) -> None:
    press(page, "1", 1)
    page.keyboard.down("2")
    expect(page.locator("#count")).to_have_text(f"2 of {GROUPS}")
    for _ in range(5):
        page.keyboard.down("2")  # repeats while it is held
    page.keyboard.up("2")
    page.keyboard.press("Control+1")
    page.keyboard.press("9")  # there are four images
    press(page, "3", 3)
    assert [line["best"] for line in written(folder)] == [0, 1, 2]


def test_a_key_pressed_while_a_choice_is_saved_is_not_one(
    page: Any, serving: Serving, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = serving.server.journal
    choose = journal.choose
    monkeypatch.setattr(journal, "choose", lambda group, best: time.sleep(0.3) or choose(group, best))
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.method))
    page.keyboard.press("1")
    page.keyboard.press("2")
    expect(page.locator("#count")).to_have_text(f"1 of {GROUPS}")
    assert sent.count("POST") == 1
    press(page, "0", 2)
    assert written(folder) == [{"group": 0, "best": 0}, {"group": 1, "best": None}]


def test_clicks_tab_and_enter_work_too(page: Any, folder: Path) -> None:
    page.get_by_role("button", name="Image 2 of 2").click()
    expect(page.locator("#count")).to_have_text(f"1 of {GROUPS}")
    page.get_by_role("button", name="No preference").click()
    expect(page.locator("#count")).to_have_text(f"2 of {GROUPS}")
    expect(page.locator("#last")).to_have_text("Last: no preference, for “prompt 1”")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#count")).to_have_text(f"1 of {GROUPS}")
    expect(page.get_by_role("status")).to_have_text(f"Undone. 1 of {GROUPS} labelled.")
    press(page, " ", 2)  # not the button that was clicked
    for _ in range(3):
        page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Image 3 of 4")).to_be_focused()
    press(page, " ", 3)  # the button that has the focus
    assert written(folder)[-1] == {"group": 2, "best": 2}


def test_another_tab_went_ahead(page: Any, serving: Serving, folder: Path) -> None:
    serving.server.journal.choose(0, 1)
    page.keyboard.press("1")
    expect(page.get_by_role("alert")).to_contain_text("group 0 is already labelled")
    expect(page.locator("#prompt")).to_have_text("prompt 1")
    press(page, "1", 2)
    expect(page.locator("#trouble")).to_be_hidden()
    assert written(folder) == [{"group": 0, "best": 1}, {"group": 1, "best": 0}]


def test_a_choice_outlives_a_server_that_was_away(page: Any, serving: Serving, folder: Path) -> None:
    press(page, "1", 1)
    serving.stop()
    page.keyboard.press("2")
    expect(page.get_by_role("alert")).to_contain_text("Your choice, image 2, is not saved yet.")
    expect(page.locator(".chosen")).to_have_count(1)
    again = Serving(folder, serving.port)
    try:
        press(page, "r", 2)
        expect(page.locator("#trouble")).to_be_hidden()
        press(page, "Backspace", 1)
        press(page, "0", 2)
    finally:
        again.stop()
    assert preferences(folder) == [(0, 0), (1, None)]


def test_the_end_says_what_is_next_and_stops_the_server(page: Any, serving: Serving, folder: Path) -> None:
    for group in range(GROUPS):
        serving.server.journal.choose(group, 0)
    page.reload()
    expect(page.get_by_role("heading", name=f"All {GROUPS} labelled")).to_be_visible()
    expect(page.locator("#next")).to_have_text("Now train.")
    press(page, "u", GROUPS - 1)
    press(page, "2", GROUPS)
    page.get_by_role("button", name="Finish").click()
    expect(page.locator("#last")).to_contain_text("The server has stopped.")
    serving.thread.join(timeout=20)
    assert not serving.thread.is_alive()
    assert preferences(folder)[-1] == (GROUPS - 1, 1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_shows_it_without_scrolling_sideways(browser: Any, serving: Serving, folder: Path, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    page.goto(serving.address)
    expect(page.locator(".choice")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    left, right = (choice.bounding_box() for choice in page.locator(".choice").all())
    assert left["y"] == right["y"] and left["x"] + left["width"] < right["x"]
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 22, 24)"
    assert dark == (scheme == "dark")
    context.close()
