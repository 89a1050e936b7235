"""The page at /, in a real browser, with a real server behind it."""

import base64
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browsing import needs_browser
from making import make_shapes
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from serving import Running, running

import vitreous

KEY = "a-key-of-enough-letters"
DROP = """([name, kind, data]) => {
    const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0)), transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, { type: kind }));
    for (const kind of ['dragover', 'drop']) {
        const event = new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true });
        document.getElementById('drop').dispatchEvent(event);
    }
}"""
pytestmark = needs_browser
Visit = Callable[..., Page]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> dict[str, Path]:
    """A picture a class."""
    root = make_shapes(tmp_path_factory.mktemp("page") / "shapes", each=1, seed=70)
    return {path.parent.name: path for path in root.rglob("*.jpg")}


@pytest.fixture(scope="module")
def server(shapes_run) -> Iterator[Running]:
    with running(vitreous.load(shapes_run)) as served:
        yield served


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Opens a server's page. What it says to the console, throws, or asks of anyone else fails the test."""
    faults, contexts = [], []

    def opened(server: Running, **options) -> Page:
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}))
        contexts[-1].set_default_timeout(120_000)
        shown = contexts[-1].new_page()
        said = lambda message: None if "status of 4" in message.text else faults.append(message.text)  # noqa: E731
        shown.on("console", said)
        shown.on("pageerror", lambda error: faults.append(f"error: {error}"))
        shown.on("filechooser", lambda chooser: None)  # from the start: to ask for it later comes too late at times
        allowed = (server.address, "data:", "blob:")
        shown.on("request", lambda asked: None if asked.url.startswith(allowed) else faults.append(asked.url[:200]))
        shown.goto(server.address)
        shown.wait_for_selector("html[data-ready]")
        return shown

    yield opened
    for context in contexts:
        context.close()
    assert faults == []


def drop(page: Page, path: Path, name: str = "", kind: str = "image/jpeg") -> None:
    page.evaluate(DROP, [name or path.name, kind, base64.b64encode(path.read_bytes()).decode()])


def answers(page: Page) -> dict[str, float]:
    """What the bars say, by name."""
    names = page.locator(".answer bdi").all_inner_texts()
    numbers = page.locator(".answer .number").all_inner_texts()
    return {name: float(re.sub(r"[^0-9.]", "", number)) for name, number in zip(names, numbers, strict=True)}


def painted(page: Page) -> int:
    """How many different colours the map on the picture has."""
    return page.evaluate("() => new Set(document.querySelector('.overlay').words).size")


def test_a_dropped_picture_gets_its_label_with_bars_and_then_its_map(visit, server, shapes_run, pictures):
    page, offline = visit(server), vitreous.load(shapes_run)
    expect(page.locator("#facts")).to_contain_text("blue, green, red")
    for name, path in pictures.items():
        drop(page, path)
        expect(page.locator("#title")).to_have_text(name)
        page.wait_for_selector(f"html[data-mapped='{name}']")
        told = answers(page)
        assert next(iter(told)) == name
        assert told[name] == pytest.approx(100 * offline.predict(path)[0].probabilities[name], abs=0.06)
        bar = page.locator(".answer.target .bar i").evaluate("bar => bar.style.width")
        assert float(bar.rstrip("%")) == pytest.approx(told[name], abs=0.1)
        expect(page.locator("#caption")).to_contain_text(f"What speaks for {name}, by integrated tokens. Faithfulness")
        assert page.locator(".overlay").evaluate("c => [c.width, c.height]") == [4, 3]
        assert painted(page) > 3
        assert page.locator("#said").inner_text().startswith(f"What speaks for {name}")


def test_another_answer_can_be_asked_about_and_keys_alone_do_it(visit, server, pictures):
    page = visit(server)
    page.keyboard.press("Tab")  # to the link that skips to the content
    for _ in range(6):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "drop":
            break
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(pictures["red"])
    page.wait_for_selector("html[data-mapped='red']")
    other = page.locator("button.answer").nth(1)
    name = other.locator("bdi").inner_text()
    other.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(f"html[data-mapped='{name}']")
    assert other.get_attribute("aria-pressed") == "true"
    expect(page.locator("#title")).to_have_text("red")


def test_a_picture_that_cannot_be_used_is_said_and_the_next_one_is_answered(visit, server, pictures, tmp_path):
    page = visit(server)
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    page.set_input_files("#file", tmp_path / "bad.jpg")
    expect(page.locator("#fault")).to_contain_text("bad.jpg: ")
    expect(page.locator(".unseen")).to_be_visible()
    assert page.locator(".answer").count() == 0
    page.set_input_files("#file", pictures["blue"])
    page.wait_for_selector("html[data-mapped='blue']")
    expect(page.locator("#fault")).to_be_hidden()
    expect(page.locator(".unseen")).to_have_count(0)


def test_a_kind_that_browsers_cannot_show_is_answered_and_shown_as_the_model_sees_it(visit, blobs_run, blobs):
    with running(vitreous.load(blobs_run)) as served:
        page = visit(served)
        page.set_input_files("#file", blobs.parent / "007.npy")
        page.wait_for_selector("html[data-mapped='place (mm)']")
        offline = vitreous.load(blobs_run).predict(blobs.parent / "007.npy")[0].values["place (mm)"]
        expect(page.locator(".answer .number")).to_have_text(f"{offline:.4g}\u00a0mm")
        expect(page.locator(".answer .right")).to_contain_text("likely from")
        assert page.locator(".picture").evaluate("picture => [picture.naturalWidth, picture.naturalHeight]") == [36, 20]
        expect(page.locator(".picture")).to_be_visible()


def test_a_picture_that_is_too_large_is_not_sent(visit, shapes_run, pictures):
    with running(vitreous.load(shapes_run), picture_bytes=500) as served:
        page = visit(served)
        sent = []
        page.on("request", lambda asked: sent.append(asked.url))
        drop(page, pictures["red"])
        expect(page.locator("#fault")).to_contain_text("the server takes up to")
        assert sent == []


def test_one_that_is_too_large_ends_the_waiting_for_the_one_before_it(visit, shapes_run, pictures, tmp_path):
    Image.new("RGB", (32, 24)).save(tmp_path / "small.png")
    with running(vitreous.load(shapes_run), picture_bytes=500) as served:
        page = visit(served)
        page.route("**/predict?*", lambda route: None)  # it is never answered
        drop(page, tmp_path / "small.png", kind="image/png")
        expect(page.locator("html")).to_have_class(re.compile(r"\bbusy\b"))
        drop(page, pictures["red"])
        expect(page.locator("#fault")).to_contain_text("the server takes up to")
        expect(page.locator("html")).not_to_have_class(re.compile(r"\bbusy\b"))


def test_labels_are_listed_by_their_own_names(visit, server, pictures):
    page = visit(server)
    page.route("**/explain?*", lambda route: None)
    answer = {"picture": "x", "kind": "multilabel"}
    page.route("**/predict?*", lambda route: route.fulfill(json={"answers": [answer]}))
    for labels, title in ((["black or white"], "black or white"), (["a", "b", "c or d"], "a, b and c or d")):
        answer |= {"labels": labels, "probabilities": dict.fromkeys(labels, 0.9)}
        drop(page, pictures["red"])
        expect(page.locator("#title")).to_have_text(title)


def test_names_of_files_and_classes_are_only_ever_text(visit, server, pictures):
    page = visit(server)
    name = "<img src=x onerror=window.ran=1>\u202e.jpg"
    drop(page, pictures["red"], name)
    page.wait_for_selector("html[data-mapped='red']")
    assert page.locator("#name").inner_text() == name
    assert page.evaluate("window.ran") is None


def test_a_server_with_a_key_asks_for_it_once(visit, shapes_run, pictures):
    with running(vitreous.load(shapes_run), key=KEY.encode()) as served:
        page = visit(served)
        drop(page, pictures["green"])
        expect(page.locator("#key-form")).to_be_visible()
        page.fill("#key", "another-key-than-that")
        page.keyboard.press("Enter")
        expect(page.locator("#fault")).to_contain_text("expected the key")
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector("html[data-mapped='green']")
        page.reload()
        page.wait_for_selector("html[data-ready]")
        drop(page, pictures["red"])
        page.wait_for_selector("html[data-mapped='red']")
        expect(page.locator("#key-form")).to_be_hidden()


def test_the_whole_account_is_saved_as_one_file(visit, server, pictures, tmp_path):
    page = visit(server, accept_downloads=True)
    drop(page, pictures["red"])
    page.wait_for_selector("html[data-mapped='red']")
    with page.expect_download(timeout=120_000) as download:
        page.click("#account")
    download.value.save_as(tmp_path / "why.html")
    assert download.value.suggested_filename == "why.html"
    assert "Which parts mattered" in (tmp_path / "why.html").read_text("utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen_and_a_photo_can_be_taken(visit, server, pictures, scheme):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "color_scheme": scheme}
    page = visit(server, **phone)
    wide = "() => document.documentElement.scrollWidth > innerWidth"
    assert not page.evaluate(wide)
    expect(page.locator("#photograph")).to_be_visible()
    with page.expect_file_chooser() as chooser:
        page.tap("#photograph")
    assert page.get_attribute("#camera", "capture") == "environment"
    chooser.value.set_files(pictures["red"])
    page.wait_for_selector("html[data-mapped='red']")
    assert not page.evaluate(wide)
    sizes = page.locator("button:visible").evaluate_all("all => all.map(one => one.getBoundingClientRect().height)")
    assert min(sizes) >= 32
