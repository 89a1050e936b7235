"""The page of explanations, in a real browser that is cut off from any network."""

import base64
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import needs_browser
from playwright.sync_api import Browser, Page

from vitreous.errors import InputError
from vitreous.insight import page as shell
from vitreous.insight.explain_page import (
    BUDGET,
    PageAnswer,
    PageAttribution,
    PageExplanation,
    PageFacts,
    PageLedger,
    PageLens,
    PageSplit,
    explain_page,
    pooled,
)

FACTS = PageFacts(
    "vit_xs_8", (32, 48), 2_700_000, "86 % of 341 validation pictures are answered rightly", "High is good."
)
LATIN = "".join(map(chr, range(0x20, 0x7F)))
HOSTILE = [
    "<script>window.ran=1</script>",
    "</script><script>window.ran=1</script>",
    "</SCRIPT ><svg onload=window.ran=1>",
    "<!--<script>",
    "--><img src=x onerror=window.ran=1>",
    "<img src=x onerror=window.ran=1>",
    "<svg/onload=window.ran=1>",
    "<iframe srcdoc='<script>parent.ran=1</script>'></iframe>",
    "<a href='javascript:window.ran=1' autofocus onfocus=window.ran=1>x</a>",
    "javascript:window.ran=1",
    "data:text/html,<script>window.ran=1</script>",
    "<style>body{display:none}</style>",
    "<base href='https://example.com/'>",
    "<meta http-equiv=refresh content='0;url=https://example.com'>",
    "<link rel=stylesheet href=https://example.com/x.css>",
    "<object data=x></object><embed src=x>",
    "<form action=https://example.com><button>",
    "<template><script>window.ran=1</script></template>",
    "<math><mtext></mtext><script>window.ran=1</script></math>",
    "]]><![CDATA[",
    '"',
    "'",
    '" onmouseover="window.ran=1',
    "' onmouseover='window.ran=1",
    "`${window.ran=1}`",
    "${window.ran=1}",
    "{{script}}",
    "{{data}}{{style_hash}}",
    "\\",
    "\\u003cscript\\u003ewindow.ran=1\\u003c/script\\u003e",
    "\u2028window.ran=1\u2029",
    "a\nwindow.ran=1\n",
    "tab\there",
    "&lt;script&gt;",
    "&amp;&quot;&#39;",
    "\u202egnp.exe",
    "\u2067\u202e\u202aabc",
    "\ufeffbom",
    "\u200b",
    "e\u0301\u0302\u0303\u0304" * 20,
    "🐈\u200d⬛🇨🇭👩🏽\u200d🚀",
    "漢字かな العربية עברית हिन्दी",
    "null",
    "undefined",
    "NaN",
    "__proto__",
    "constructor",
    "0",
    LATIN,
    "x" * 10_000,
    "word " * 2_000,
    "../../etc/passwd",
]


@pytest.fixture
def visit(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Opens a page from disk, offline. Whatever it says to the console, asks for or throws fails the test."""
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900}, color_scheme="light")
    context.set_default_timeout(120_000)
    faults: list[str] = []

    def opened(explanations: PageExplanation | Sequence[PageExplanation], facts: PageFacts = FACTS) -> Page:
        several = [explanations] if isinstance(explanations, PageExplanation) else explanations
        path = tmp_path / "why.html"
        path.write_text(explain_page(several, facts), encoding="utf-8")
        shown = context.new_page()
        shown.on("console", lambda message: faults.append(f"console: {message.text}"))
        shown.on("pageerror", lambda error: faults.append(f"error: {error}"))
        shown.on("dialog", lambda dialog: faults.append(f"dialog: {dialog.message}"))
        allowed = (path.as_uri(), "data:")
        shown.on("request", lambda asked: None if asked.url.startswith(allowed) else faults.append(asked.url[:200]))
        shown.goto(path.as_uri())
        shown.wait_for_selector("html[data-ready='0']")
        return shown

    yield opened
    context.close()
    assert faults == []


def softmax(scores: np.ndarray) -> np.ndarray:
    exponents = np.exp(scores - scores.max(-1, keepdims=True))
    return (exponents / exponents.sum(-1, keepdims=True)).astype(np.float32)


def make_explanation(
    grid: tuple[int, int] = (4, 6), blocks: int = 3, heads: int = 2, prefix: Sequence[str] = ("class token",), **changed
) -> PageExplanation:
    """All that a page can show of a picture, out of noise."""
    rng = np.random.default_rng(7)
    tokens = grid[0] * grid[1]
    names = ["embedding", *(f"head {block}.{head}" for block in range(blocks) for head in range(heads)), "bias"]
    parts = rng.normal(size=(len(names), len(prefix) + tokens))
    values = parts.sum(1)
    whole = PageExplanation(
        name="cat.png",
        pixels=rng.integers(0, 255, (grid[0] * 8, grid[1] * 8, 3)).astype(np.uint8),
        grid=grid,
        answers=[PageAnswer("cat", 0.75), PageAnswer("dog", 0.25)],
        target="cat",
        prefix=prefix,
        attributions=[
            PageAttribution("rollout", "All attention.", rng.random(grid), 0.4),
            PageAttribution("occlusion", "Patches are covered.", rng.normal(size=grid), 0.9),
        ],
        chance=0.45,
        edges=0.5,
        attention=softmax(rng.normal(0, 2, (blocks, heads, len(prefix) + tokens, len(prefix) + tokens))),
        lens=PageLens(["cat", "dog"], rng.random((blocks + 1, 2))),
        ledger=PageLedger(names, values, float(values.sum()), tokens=parts),
        position=rng.uniform(-1, 1, (tokens, tokens)),
    )
    return replace(whole, **changed)


def unpacked(found: dict[str, Any]) -> np.ndarray:
    """What the page's `unpack` makes of a packed array."""
    raw = zlib.decompress(base64.b64decode(found["data"]))
    if found["dtype"] == "f16":
        return np.frombuffer(raw, "<f2").reshape(found["shape"]).astype(float)
    codes = np.frombuffer(raw, np.uint8).astype(int)
    if found["dtype"] == "u4":
        codes = np.stack((codes & 15, codes >> 4), 1).reshape(-1)[: np.prod(found["shape"])] ** 2 / 15
    return ((codes - found.get("zero", 0)) * found["scale"]).reshape(found["shape"])


def read_data(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


def caption(shown: Page) -> str:
    return shown.inner_text("#attention-caption").replace("\u00a0", " ")


def pixels_of(shown: Page, selector: str) -> str:
    return shown.eval_on_selector(selector, "canvas => canvas.toDataURL()")


def turn_to(shown: Page, number: int) -> None:
    """Shows another of several pictures."""
    shown.locator("#picker label").nth(number).click()
    shown.wait_for_selector(f"html[data-ready='{number}']")


def point_at(shown: Page, board: str, row: int, column: int, grid: tuple[int, int]) -> None:
    area = shown.locator(f"{board} .cells")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    assert box
    y, x = (row - 0.5) / grid[0] * box["height"], (column - 0.5) / grid[1] * box["width"]
    shown.mouse.move(box["x"] + x, box["y"] + y)


# Text and arrays


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_in_the_data_can_end_the_element_that_holds_it(name: str):
    text = shell.json_text({name: [name, {"deep": name}]})
    assert json.loads(text) == {name: [name, {"deep": name}]}
    assert not set("<>&\u2028\u2029") & set(text)


def test_text_that_no_file_could_hold_is_written_all_the_same():
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")  # as the file system gives it
    html = explain_page([make_explanation(name=name, target=name)], FACTS)
    assert read_data(html.encode().decode())["pictures"][0]["name"] == name
    assert "caf\ufffd.png" in html.split("<style>")[0]


def test_numbers_that_are_none_become_null():
    assert json.loads(shell.json_text([np.float32("nan"), np.inf, np.int64(3), (1.5,)])) == [None, None, 3, [1.5]]


def test_an_array_comes_back_as_near_as_its_kind_allows():
    rng = np.random.default_rng(0)
    plain, both = rng.random((7, 9)), rng.normal(size=(7, 9))
    np.testing.assert_allclose(unpacked(shell.packed(both)), both, rtol=1e-3)
    np.testing.assert_allclose(unpacked(shell.packed(plain, "u8")), plain, atol=0.5001 / 255)
    np.testing.assert_allclose(unpacked(shell.packed(both, "u8")), both, atol=0.5001 * np.abs(both).max() / 127)
    coarse = unpacked(shell.packed(plain, "u4"))
    np.testing.assert_allclose(np.sqrt(coarse), np.sqrt(plain), atol=0.5001 / 15 * 1.01)
    assert (unpacked(shell.packed(np.array([-1.0, 0.0, 0.0, 0.7]), "u8"))[1:3] == 0).all()


def test_pooling_keeps_the_sum_and_lets_edges_be_smaller():
    values = np.arange(35.0).reshape(5, 7)
    found = pooled(values, 3)
    assert found.shape == (2, 3)
    assert found[1, 2] == values[3:, 6:].sum()
    assert found.sum() == values.sum()


def test_a_page_of_no_picture_is_refused():
    with pytest.raises(InputError, match="no picture"):
        explain_page([], FACTS)


# Size


def test_a_picture_of_a_large_model_stays_below_8_mb_and_says_what_is_left_out():
    rng = np.random.default_rng(3)
    block = rng.random((12, 577, 577), dtype=np.float32) ** 4  # noise: nothing a compressor could use
    block /= block.sum(-1, keepdims=True)
    shown = make_explanation((24, 24), pixels=rng.integers(0, 255, (384, 384, 3)).astype(np.uint8))
    html = explain_page([replace(shown, attention=[block] * 12)], FACTS)
    assert len(html.encode()) <= BUDGET
    found = read_data(html)["pictures"][0]["attention"]
    assert "summed over squares" in found["words"]
    keys = pooled(block[:, :, 1:].reshape(12, 577, 24, 24), found["factor"]).reshape(12, 577, -1)
    layer = found["layers"][5]
    assert layer["codes"]["dtype"] == "u4"
    roots = np.sqrt(unpacked(layer["codes"] | {"scale": 1 / 15}))
    np.testing.assert_allclose(roots, np.sqrt(keys / keys.max(-1, keepdims=True)), atol=0.51 / 15)
    np.testing.assert_allclose(unpacked(layer["top"]), keys.max(-1), rtol=1e-3)


def test_a_huge_picture_is_shown_smaller_and_stays_within_its_bytes():
    pixels = np.random.default_rng(0).integers(0, 255, (1700, 1100, 3)).astype(np.uint8)
    shown = make_explanation((8, 5), pixels=pixels, attributions=[PageAttribution("all", "", pixels[:, :, 0] - 127.0)])
    html = explain_page([shown], FACTS)
    assert len(html.encode()) <= BUDGET
    assert read_data(html)["pictures"][0]["shrunk"] == 2


# In the browser


@needs_browser
def test_the_page_opens_offline_without_a_word_or_a_request(visit):
    shown = visit([make_explanation(), make_explanation((3, 3), pool=np.full((2, 9), 1 / 9), prefix=())])
    assert shown.inner_text("h1") == "Why cat?"
    assert shown.locator("section.part:visible").count() == 5  # a model without soft splits
    assert shown.inner_text(".answer.target .number").replace("\u00a0", " ") == "75.0 %"
    turn_to(shown, 1)
    assert caption(shown).startswith("Pooling attends most to row 1, column 1 (11.1 %)")


@needs_browser
def test_the_policy_of_the_page_lets_nothing_else_run_or_load(browser: Browser, tmp_path: Path):
    (tmp_path / "why.html").write_text(explain_page([make_explanation()], FACTS), encoding="utf-8")
    shown = browser.new_page()
    shown.goto((tmp_path / "why.html").as_uri())
    refused = shown.evaluate("""async () => {
        const refused = [];
        addEventListener('securitypolicyviolation', event => refused.push(event.effectiveDirective));
        const script = document.createElement('script'), image = new Image(), style = document.createElement('style');
        script.textContent = 'window.ran = 1';
        style.textContent = 'body { display: none }';
        document.body.setAttribute('onclick', 'window.ran = 1');
        document.body.click();
        document.body.append(script, style);
        image.src = 'https://example.com/x.png';
        await fetch('https://example.com').catch(() => 0);
        await new Promise(done => setTimeout(done, 100));
        return [refused, window.ran ?? null, getComputedStyle(document.body).display];
    }""")
    directives = {"script-src-elem", "script-src-attr", "style-src-elem", "img-src", "connect-src"}
    assert [set(refused[0]), *refused[1:]] == [directives, None, "block"]
    shown.close()


@needs_browser
def test_pointing_at_a_patch_changes_every_map_and_leaving_brings_them_back(visit, capsys):
    grid = (14, 14)
    shown = visit(make_explanation(grid, blocks=12, heads=12))
    maps = ("#attention-board canvas", "#heads button:nth-child(12) canvas")
    before = [pixels_of(shown, name) for name in maps]
    point_at(shown, "#attention-board", 3, 5, grid)
    assert caption(shown).startswith("Patch row 3, column 5 attends most to ")
    during = [pixels_of(shown, name) for name in maps]
    assert all(a != b for a, b in zip(before, during, strict=True))
    shown.mouse.move(5, 5)
    assert [pixels_of(shown, name) for name in maps] == before
    times = shown.evaluate("""() => {
        const area = document.querySelector('#attention-board .cells'), box = area.getBoundingClientRect(), times = [];
        for (let i = 0; i < 196; i++) {
            const start = performance.now();
            area.dispatchEvent(new PointerEvent('pointermove', { pointerType: 'mouse',
                clientX: box.left + (i % 14 + 0.5) / 14 * box.width,
                clientY: box.top + (Math.floor(i / 14) + 0.5) / 14 * box.height }));
            document.body.offsetHeight;  // the layout, too
            times.push(performance.now() - start);
        }
        return times.sort((a, b) => a - b);
    }""")
    assert len(times) == 196
    with capsys.disabled():
        print(
            f"\na hover over 14×14 patches, 12 blocks of 12 heads: median {times[98]:.1f} ms, most {times[-1]:.1f} ms"
        )


@needs_browser
@pytest.mark.parametrize("cell", [1, 2])
def test_the_words_say_what_the_model_did(visit, cell: int):
    rng = np.random.default_rng(1)
    grid, rows = (5, 6), (-(-5 // cell), -(-6 // cell))
    tokens = rows[0] * rows[1]
    attention = softmax(rng.normal(0, 3, (4, 3, 2 + tokens, 2 + tokens)))
    shown = visit(make_explanation(grid, prefix=("class token", "register 1"), attention=attention, cell=cell))
    shown.locator("#block").fill("2")
    shown.locator("#heads button").nth(1).click()
    point_at(shown, "#attention-board", 4, 3, grid)
    row = attention[2, 1, 2 + (3 // cell) * rows[1] + 2 // cell]
    best = int(row[2:].argmax())
    down, across = best // rows[1] * cell + 1, best % rows[1] * cell + 1
    place = f"{_range('row', down, min(down + cell - 1, 5))}, {_range('column', across, min(across + cell - 1, 6))}"
    words = caption(shown).replace("\u2068", "").replace("\u2069", "")
    assert f"attends most to {place} ({_percent(row[2:].max())})" in words
    assert f"; {_percent(row[0])} to the class token and {_percent(row[1])} to register 1. Block 3, head 2." in words
    shown.mouse.move(5, 5)
    shown.locator("#from button", has_text="all patches").click()
    shown.locator("#mean").click()
    mean = attention[2, :, 2:].mean((0, 1))
    assert f"({_percent(mean[2:].max())})" in caption(shown)
    assert f"; {_percent(mean[0])} to the" in caption(shown)


def _range(name: str, first: int, last: int) -> str:
    return f"{name} {first}" if first == last else f"{name}s {first} to {last}"


def _percent(share: float) -> str:
    return "< 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


@needs_browser
def test_the_colours_of_a_map_are_those_of_its_values(visit):
    values = np.array([[0.0, 0.5], [0.25, 1.0]])
    shown = visit(make_explanation((2, 2), attributions=[PageAttribution("one", "", values)], attention=None))
    read = """canvas => [...canvas.getContext('2d').getImageData(0, 0, 2, 2).data]"""
    pixels = np.array(shown.eval_on_selector("#map-board canvas", read)).reshape(2, 2, 4)
    light = (pixels[:, :, :3] * (0.2126, 0.7152, 0.0722)).sum(-1)
    np.testing.assert_array_equal(light.argsort(axis=None), values.argsort(axis=None))


@needs_browser
def test_a_map_that_is_nearly_flat_shows_its_order_and_says_that_it_is_flat(visit):
    values = np.array([[0.9, 0.95], [0.925, 1.0]])
    shown = visit(make_explanation((2, 2), attributions=[PageAttribution("one", "", values)], attention=None))
    assert "the least for 90.0 % of the most" in shown.inner_text("#map-caption").replace("\u00a0", " ")
    read = "canvas => [...canvas.getContext('2d').getImageData(0, 0, 2, 2).data]"
    colours = shown.eval_on_selector("#map-board canvas", read)
    assert sum(colours[12:15]) - sum(colours[:3]) > 400


@needs_browser
def test_tab_reaches_every_control(visit):
    shown = visit([make_explanation(), make_explanation()])
    controls = shown.evaluate("""() => {
        const all = [...document.querySelectorAll('a[href], button, input, summary, [tabindex="0"]')];
        const can = one => one.checkVisibility() && !one.disabled && (one.type !== 'radio' || one.checked);
        const there = all.filter(can);
        there.forEach((one, i) => one.dataset.control = i);
        return there.length;
    }""")
    reached = set()
    for _ in range(controls):
        shown.keyboard.press("Tab")
        reached.add(shown.evaluate("document.activeElement.dataset.control ?? null"))
    assert reached == {str(i) for i in range(controls)}
    assert controls > 20


@needs_browser
def test_arrow_keys_move_the_token_and_escape_goes_back(visit):
    shown = visit(make_explanation((4, 6)))
    first = caption(shown)
    assert "class token" in first.split("attends")[0]
    cell = "#attention-board [role=gridcell][tabindex='0']"
    shown.locator(cell).focus()
    start = shown.get_attribute(cell, "aria-label")
    assert start == "row 3, column 4"
    for keys, place in (
        (("ArrowRight",), "row 3, column 5"),
        (("ArrowUp", "ArrowLeft"), "row 2, column 4"),
        (("Home", "ArrowLeft"), "row 2, column 1"),
        (("ArrowDown", "End"), "row 3, column 6"),
        (("Control+Home",), "row 1, column 1"),
        (("Control+End", "ArrowDown"), "row 4, column 6"),
    ):
        for key in keys:
            shown.keyboard.press(key)
        assert shown.evaluate("document.activeElement.getAttribute('aria-label')") == place
        assert shown.locator("#attention-board [role=gridcell][tabindex='0']").count() == 1
        assert caption(shown).startswith(f"Patch {place} attends most to ")
        shown.wait_for_function("words => document.getElementById('said').textContent.includes(words)", arg=place)
        assert shown.get_attribute("#attention-board [role=row]:has(:focus)", "aria-rowindex") == place[4]
    shown.keyboard.press("Escape")
    assert caption(shown) == first


@needs_browser
def test_names_are_only_ever_text(visit):
    pictures = []
    for i, name in enumerate(HOSTILE):
        other = HOSTILE[i - 1]
        ledger = PageLedger([name, other], np.array([1.0, -0.5]), 0.5, tokens=np.ones((2, 6)))
        made = make_explanation((2, 2), 1, 1, (name, other), ledger=ledger)
        pictures.append(
            replace(
                made,
                name=name,
                answers=[PageAnswer(name, 0.5), PageAnswer(other, 2.0, name)],
                target=name,
                attributions=[replace(made.attributions[0], name=name, line=name, note=other)],
                lens=PageLens([name, other], np.full((2, 2), 0.5)),
            )
        )
    facts = PageFacts(HOSTILE[0], (8, 8), 1, HOSTILE[1], HOSTILE[2], [(name, name) for name in HOSTILE])
    shown = visit(pictures, facts)
    text = shown.evaluate("document.body.textContent")
    assert all(name in text for name in HOSTILE)
    places = ["#name", "#answers", "#from", "#maps", "#map-caption", "#lens-table", "#ledger-rows"]
    read = """async places => {
        const found = [];
        for (const [i, input] of document.querySelectorAll('#picker label input').entries()) {
            input.click();
            while (document.documentElement.dataset.ready !== `${i}`) await new Promise(requestAnimationFrame);
            found.push(places.map(place => document.querySelector(place).textContent));
        }
        return found;
    }"""
    for name, texts in zip(HOSTILE, shown.evaluate(read, places), strict=True):
        assert [name in text for text in texts] == [True] * len(places)
    alien = "#main :is(script, style, iframe, object, embed, link, base, meta, form, template, math, a)"
    assert shown.locator(alien).count() == 0
    assert shown.evaluate("[window.ran ?? null, location.protocol, document.title.length > 0]") == [None, "file:", True]
    for width in (360, 1440):
        shown.set_viewport_size({"width": width, "height": 800})
        assert shown.evaluate("document.documentElement.scrollWidth") == width


@needs_browser
def test_no_screen_is_too_narrow(visit):
    prefix = ("class token", *(f"register {i}" for i in range(1, 5)))
    shown = visit([make_explanation(grid, heads=12, prefix=prefix) for grid in ((3, 20), (14, 14), (20, 3))])
    for number in range(3):
        turn_to(shown, number)
        for width in (360, 390, 768, 1024, 1440):
            shown.set_viewport_size({"width": width, "height": 800})
            assert shown.evaluate("document.documentElement.scrollWidth") == width


@needs_browser
def test_soft_splits_are_followed_back_to_the_pixels(visit):
    splits = [PageSplit((16, 16), 7, 4, 2), PageSplit((8, 8), 3, 2, 1), PageSplit((4, 4), 3, 2, 1)]
    pixels = np.zeros((64, 64), np.uint8)
    shown = visit(make_explanation((4, 4), splits=splits, pixels=pixels))
    point_at(shown, "#split-board", 3, 2, (4, 4))
    assert shown.inner_text("#splits-caption") == "Token row 3, column 2 goes back to a window of 31 × 31 pixels."
    assert [row.split("holds ")[1] for row in shown.locator("#split-rows .held").all_inner_texts()] == [
        "31 × 31 of these, the middle ones up to 9 times.",
        "7 × 7 of these, the middle ones up to 4 times.",
        "3 × 3 of these.",
    ]
    point_at(shown, "#split-board", 1, 1, (4, 4))  # its window begins 14 pixels before the picture
    assert f"{31 * 31 - 17 * 17} of them lie outside" in shown.inner_text("#splits-caption")


@needs_browser
def test_the_shown_parts_of_the_score_and_the_others_are_its_sum(visit):
    shown = visit(make_explanation(blocks=6, heads=4))
    numbers = [float(text.replace("−", "-")) for text in shown.locator("#ledger-rows .number").all_inner_texts()]
    assert len(numbers) == 16  # 14 parts, the others, the sum
    assert abs(sum(numbers[:-1]) - numbers[-1]) < 0.1
    before = pixels_of(shown, "#ledger-board canvas")
    shown.locator("#ledger-rows button").nth(3).click()
    assert pixels_of(shown, "#ledger-board canvas") != before


@needs_browser
def test_maps_keep_their_order_and_the_first_is_shown_whatever_they_score(visit):
    shown = visit(make_explanation())
    assert shown.locator("#maps .what").all_inner_texts() == ["rollout", "occlusion"]
    assert shown.locator("#maps button").first.get_attribute("aria-pressed") == "true"
    assert shown.inner_text("#map-caption").startswith("rollout.")


@needs_browser
def test_a_score_is_held_against_chance(visit):
    verdicts = {
        0.4: "within chance: random maps stay within ±0.45",
        -0.4: "within chance: random maps stay within ±0.45",
        -0.6: "worse than chance",
        0.48: "better than chance, no better than edges",
        0.9: "better than chance: random maps stay within ±0.45, and the picture’s edges alone have 0.50",
    }
    made = make_explanation()
    maps = [[PageAttribution("one", "", np.eye(4, 6), score)] for score in verdicts]
    shown = visit([replace(made, attributions=one) for one in maps])
    for number, verdict in enumerate(verdicts.values()):
        turn_to(shown, number)
        assert f", {verdict}" in shown.inner_text("#map-caption")
        assert "random maps stay within ±0.45" in shown.inner_text("#chance-words")


@needs_browser
def test_scores_have_the_digits_that_chance_on_the_picture_asks_for(visit):
    shown = visit(make_explanation(attributions=[PageAttribution("one", "", np.eye(4, 6), 0.0062)], chance=0.004))
    assert "Faithfulness 0.006, better than chance, no better than edges: random maps stay within ±0.004" in (
        shown.inner_text("#map-caption")
    )


@needs_browser
def test_the_band_of_chance_lies_about_0_on_the_bar_of_every_score(visit):
    scores = {"none": 0.0, "at the edge": 0.45, "much": 0.9}
    shown = visit(make_explanation(attributions=[PageAttribution(n, "", np.eye(4, 6), x) for n, x in scores.items()]))
    read = "marks => marks.map(mark => [parseFloat(mark.style.left), parseFloat(mark.style.width)])"
    bands = np.array(shown.eval_on_selector_all("#maps .strip .chance", read))
    none, edge, much = np.array(shown.eval_on_selector_all("#maps .strip .dot", read), float)[:, 0]
    assert none < edge < much
    np.testing.assert_allclose(bands, [[2 * none - edge, 2 * (edge - none)]] * 3, atol=0.01)


@needs_browser
def test_a_difference_is_asked_for_as_the_first_rather_than_the_second(visit):
    ledger = PageLedger(["bias"], np.array([1.0]), 1.0)
    shown = visit(make_explanation(target="dog", against="cat", ledger=ledger))
    assert shown.inner_text("h1") == "What speaks for dog rather than cat?"
    assert "the first answer less that of the second" in shown.inner_text("#ledger-words")


@needs_browser
def test_what_is_faint_is_gathered_in_one_line(visit):
    answers = [PageAnswer(f"class {i}", p) for i, p in enumerate([0.9, 0.08, 0.005, 0.004, 0.004, 0.004, 0.003])]
    ledger = PageLedger([f"part {i}" for i in range(6)], np.array([3.0, -1.0, 0.014, 0.0, 0.01, -0.002]), 2.022)
    shown = visit(make_explanation(answers=answers, target="class 4", ledger=ledger))
    assert shown.locator(".answer bdi").all_inner_texts() == ["class 0", "class 1", "class 2", "class 4"]
    assert "others: 3 classes, 1.1 %" in shown.inner_text("#answers").replace("\u00a0", " ")
    assert shown.locator("#ledger-rows th").all_inner_texts() == ["part 0", "part 1", "4 others", "score (logit)"]


@pytest.mark.parametrize(
    ("probabilities", "labels", "others"),
    [
        ([0.9, 0.004], False, ""),  # one alone takes no more room than a line about it
        ([0.6, *[0.05] * 8], False, "others: 3 classes, 15.0\u00a0%"),
        ([0.9, 0.003, 0.001], True, "others: 2 labels, none above 0.3\u00a0%"),
    ],
)
def test_the_other_answers_are_counted(probabilities: list[float], labels: bool, others: str):
    answers = [PageAnswer(str(i), p) for i, p in enumerate(probabilities)]
    html = explain_page([make_explanation(answers=answers, target="0", labels=labels)], FACTS)
    assert read_data(html)["pictures"][0]["others"] == others


@needs_browser
def test_a_number_is_shown_in_its_unit_and_what_is_not_known_as_a_dash(visit):
    lens = PageLens(["length"], np.array([[11.0], [np.nan], [12.5], [12.41]]), "mm")
    answers = [PageAnswer("length", 12.41, "mm", (10.2, 14.6)), PageAnswer("width", np.nan, "")]
    unknown = PageAttribution("none", "", np.full((4, 6), np.nan), np.nan)
    shown = visit(make_explanation(answers=answers, target="length", lens=lens, attributions=[unknown], chance=np.nan))
    assert shown.inner_text("h1").replace("\u00a0", " ") == "Why 12.41 mm?"
    assert "likely from 10.2 mm to 14.6 mm" in shown.inner_text("#answers").replace("\u00a0", " ")
    assert shown.locator(".answer .number").nth(1).inner_text() == "–"
    shown.locator("#lens summary").click()
    assert shown.locator("#lens-table td").all_inner_texts()[1] == "–"


@needs_browser
def test_the_ticks_of_the_lens_can_be_told_apart(visit):
    spans = [(1234.51, 1234.53), (-0.0021, 0.0004), (3.0, 90_000.0), (7.0, 7.0)]
    columns = [np.linspace(low, high, 4)[:, None] for low, high in spans]
    made = make_explanation(target="length (mm)")
    shown = visit([replace(made, lens=PageLens(["length (mm)"], values, "mm")) for values in columns])
    for number, ((low, high), values) in enumerate(zip(spans, columns, strict=True)):
        shown.set_viewport_size({"width": 1280, "height": 900})
        turn_to(shown, number)
        ticks = shown.locator("#lens-chart text[text-anchor=end]").all_text_contents()
        numbers = [float(tick.replace("−", "-")) for tick in ticks]
        assert len(numbers) >= 3
        assert numbers == sorted({*numbers})
        assert low - 1 <= numbers[0] <= numbers[-1] <= high + 1
        assert len({*shown.locator("#lens-table td").all_text_contents()}) == len({*values[:, 0]})
        shown.set_viewport_size({"width": 390, "height": 800})
        shown.wait_for_function("() => document.querySelector('#lens-chart svg').getBoundingClientRect().width < 390")
        # All at once: the chart is drawn anew when the page has a new width, and its parts are others then.
        sides = "all => all.map(one => one.getBoundingClientRect()).map(box => [box.left, box.right])"
        boxes = shown.locator("#lens-chart text").evaluate_all(sides)
        assert len(boxes) >= len(numbers)
        assert all(0 <= left <= right <= 390 for left, right in boxes)


@needs_browser
def test_the_parts_of_a_number_are_added_to_the_mean_of_the_training_pictures(visit):
    parts = np.array([0.02, -0.005, 0.0025])
    ledger = PageLedger(["a", "b", "c"], parts, 12.0175, "mm", start=12.0)
    shown = visit(make_explanation(ledger=ledger))
    assert shown.locator("#ledger-rows th").all_inner_texts() == [
        "mean of the training pictures",
        "a",
        "b",
        "c",
        "sum (mm)",
    ]
    numbers = [float(text.replace("−", "-")) for text in shown.locator("#ledger-rows .number").all_inner_texts()]
    np.testing.assert_allclose(numbers, [12.0, *parts, 12.0175])
    assert shown.locator("#ledger-rows .bar").count() == 3  # beside the mean the parts could not be seen


@needs_browser
def test_the_picture_comes_before_the_facts_on_a_phone_and_beside_them_elsewhere(visit):
    shown = visit(make_explanation())
    tops = "['h1', '#seen', '#answers', '#facts'].map(one => document.querySelector(one).getBoundingClientRect().top)"
    shown.set_viewport_size({"width": 420, "height": 900})
    found = shown.evaluate(tops)
    assert found == sorted(found)
    shown.set_viewport_size({"width": 1440, "height": 900})
    heading, picture, answers, facts = shown.evaluate(tops)
    assert picture <= heading < answers < facts


@needs_browser
def test_the_windows_of_every_split_play_in_their_order_until_stopped(visit):
    splits = [PageSplit((16, 16), 7, 4, 2), PageSplit((8, 8), 3, 2, 1), PageSplit((4, 4), 3, 2, 1)]
    shown = visit(make_explanation((4, 4), splits=splits, pixels=np.zeros((64, 64), np.uint8)))
    chosen = shown.inner_text("#splits-caption")
    shown.clock.install()
    shown.clock.pause_at(shown.evaluate("Date.now()") + 1000)
    shown.locator("#play").focus()
    shown.keyboard.press("Enter")
    assert shown.inner_text("#play") == "Stop"
    shown.clock.run_for(300)
    assert "Split 1 of 3, window 3 of 256" in shown.inner_text("#splits-caption")
    shown.keyboard.press("Enter")
    assert (shown.inner_text("#splits-caption"), shown.inner_text("#play")) == (chosen, "Play the windows")

    shown.clock.resume()
    shown.emulate_media(reduced_motion="reduce")
    shown.get_by_text("Next window", exact=True).wait_for()
    told = []
    while True:
        shown.keyboard.press("Enter")
        words = shown.inner_text("#splits-caption")
        if words == chosen:
            break
        told += [(int(split), int(window)) for split, window in re.findall(r"^Split (\d) of 3, window (\d+) of", words)]
    assert told == sorted({*told})
    assert told[:9] == [(1, n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 23)]
    assert [max(window for split, window in told if split == i) for i in (1, 2, 3)] == [256, 64, 16]


@needs_browser
def test_a_window_is_marked_where_it_lies_and_places_that_more_hold_are_brighter(visit):
    splits = [PageSplit((4, 4), 7, 4, 2)]
    shown = visit(make_explanation((4, 4), splits=splits, pixels=np.zeros((16, 16), np.uint8)))
    shown.emulate_media(reduced_motion="reduce")
    for _ in range(2):
        shown.locator("#play").click()
    mark = "mark => ['x', 'y', 'width', 'height'].map(name => +mark.getAttribute(name))"
    assert shown.eval_on_selector("#split-board .mark:not(.under)", mark) == [0.5, -0.5, 1.75, 1.75]  # columns 2 to 8
    read = "canvas => [...canvas.getContext('2d').getImageData(0, 0, 16, 16).data]"
    light = np.array(shown.eval_on_selector("#split-board canvas", read)).reshape(16, 16, 4)[:, :, :3].sum(-1)
    assert light[0, 12] < light[0, 0] == light[0, 8] < light[0, 3]  # held by none, by one, by both


@needs_browser
def test_what_is_not_there_leaves_no_empty_part(visit):
    bare = make_explanation(attributions=(), attention=None, lens=None, ledger=None, position=None)
    shown = visit([make_explanation(), bare])
    assert shown.locator("section.part:visible").count() == 5
    turn_to(shown, 1)
    assert shown.locator("section.part:visible").count() == 0


@needs_browser
def test_the_button_changes_between_the_light_and_the_dark_look(visit):
    shown = visit(make_explanation())
    paper = "getComputedStyle(document.body).backgroundColor"
    light = shown.evaluate(paper)
    shown.locator("#theme").click()
    dark = shown.evaluate(paper)
    assert light != dark
    shown.reload()
    shown.wait_for_selector("html[data-ready='0']")
    assert shown.evaluate(paper) == dark
