"""The built documentation in a real browser: nothing in it is broken, and a phone shows all of it. And its checklist.

It is built here without running its notebooks, which takes long; `make docs` runs them, where one that fails fails the
build, and names its site in VITREOUS_DOCS. What is not understood fails the build in both.
"""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urldefrag, urlparse

import pytest
from browsing import needs_browser
from making import PATIENCE
from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    if "VITREOUS_DOCS" in os.environ:
        return Path(os.environ["VITREOUS_DOCS"]).resolve()
    folder = tmp_path_factory.mktemp("docs")
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(folder / "html")]
    words += ["-d", str(folder / "trees"), "-D", "nb_execution_mode=off"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr[-8_000:]
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> list[Path]:
    found = sorted(site.rglob("*.html"))
    assert {"index.html", "design.html"} <= {path.name for path in found}, f"{site} is no documentation"
    return found


def test_what_the_checklist_names_is_there():
    """Sections by their titles, which links to chapters are named after; pages, files, and names of the package."""
    checklist = ROOT / "docs/tour/checklist.md"
    text = checklist.read_text("utf-8")
    links = re.findall(r"\[([^\]]+)\]\(([^)#:]+\.md)(?:#([^)]+))?\)", text)
    assert len(links) > 40
    faults = []
    for words, file, anchor in links:
        page = checklist.parent / file
        if not page.is_file():
            faults.append(f"{file} is not there")
            continue
        titles = re.findall(r"^##+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
        if anchor and anchor not in map(slug, titles):
            faults.append(f"{file} has no section #{anchor}")
        if (chapter := re.fullmatch(r"(\d), (.+)", words)) and not (
            file.startswith(f"{chapter[1]}-") and slug(chapter[2]) == anchor
        ):
            faults.append(f"{words!r} leads to {file}#{anchor}")
    for name in re.findall(r"\{py:\w+\}`([\w.]+)`", text):
        module, _, thing = name.rpartition(".")
        if not hasattr(importlib.import_module(module), thing):
            faults.append(f"{name} is not there")
    faults += [
        f"{path} is not there" for path in re.findall(r"`(vitreous/[\w/]+\.py)`", text) if not (ROOT / path).is_file()
    ]
    assert not faults, "\n".join(faults)


def slug(title: str) -> str:
    """The name that a section has in links."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@pytest.fixture
def phone(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 375, "height": 800}, color_scheme="dark", offline=True)
    yield context.new_page()
    context.close()


@needs_browser
def test_pages_have_no_error_nor_broken_picture_and_fit_on_a_phone(pages: list[Path], phone: Page):
    faults: list[str] = []
    phone.on("pageerror", lambda fault: faults.append(f"{phone.url}: {fault}"))
    phone.on("console", lambda said: faults.extend([f"{phone.url}: {said.text}"] * (said.type == "error")))
    phone.on("requestfailed", lambda request: faults.append(f"{phone.url}: {request.url} could not be had"))
    for path in pages:
        phone.goto(path.as_uri(), wait_until="load")
        broken = phone.eval_on_selector_all(
            "img", "all => all.filter(i => i.complete && !i.naturalWidth).map(i => i.alt || i.src.slice(0, 80))"
        )
        faults += [f"{phone.url}: the picture {words!r} is broken" for words in broken]
        wide = phone.evaluate("document.documentElement.scrollWidth")
        if wide > 375:
            faults.append(f"{phone.url}: {wide} pixels wide")
    assert not faults, "\n".join(faults)


@needs_browser
def test_every_link_within_the_site_leads_somewhere(site: Path, pages: list[Path], phone: Page):
    links: dict[str, list[str]] = {}
    names: dict[Path, set[str]] = {}
    for path in pages:
        phone.goto(path.as_uri(), wait_until="domcontentloaded")
        links[path.as_uri()] = phone.eval_on_selector_all("a[href]", "all => all.map(a => a.href)")
        names[path] = set(phone.eval_on_selector_all("[id]", "all => all.map(e => e.id)"))
    broken = []
    for page, all_of_it in links.items():
        for link in all_of_it:
            target, fragment = urldefrag(link)
            if not target.startswith("file:"):
                continue
            path = Path(unquote(urlparse(target).path))
            if not path.is_file() or (fragment and path in names and unquote(fragment) not in names[path]):
                broken.append(f"{page} has {link}")
    assert not broken, "\n".join(broken)


@needs_browser
def test_a_figure_is_that_of_the_theme_and_has_words(pages: list[Path], browser: Browser):
    themes: tuple[tuple[Literal["light", "dark"], str], ...] = (("light", "dark"), ("dark", "light"))
    for theme, other in themes:
        context = browser.new_context(color_scheme=theme, offline=True)
        page = context.new_page()
        for path in pages:
            page.goto(path.as_uri(), wait_until="load")
            seen = "all => all.filter(i => i.checkVisibility()).length"
            assert page.eval_on_selector_all(f"figure.shown img.only-{other}", seen) == 0, path
            shown = page.locator(f"figure.shown img.only-{theme}").count()
            assert page.eval_on_selector_all(f"figure.shown img.only-{theme}", seen) == shown, path
            assert page.locator("figure.shown").count() == page.locator("figure.shown > figcaption").count(), path
            assert page.locator("img:not([alt]), figure.shown img[alt='']").count() == 0, path
        context.close()
