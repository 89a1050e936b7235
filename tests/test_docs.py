"""The built documentation in a real browser: nothing in it is broken, and a phone shows all of it. And its checklist.

It is built here without running its notebooks, which takes long; `make docs` runs them, where one that fails fails the
build, and names its site in VITREOUS_DOCS. What is not understood fails the build in both.
"""

import importlib
import os
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlparse

import pytest
from browsing import needs_browser
from forks import finished
from playwright.sync_api import Browser

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    if "VITREOUS_DOCS" in os.environ:
        return Path(os.environ["VITREOUS_DOCS"]).resolve()
    folder = tmp_path_factory.mktemp("docs")
    done = finished(build, folder)
    assert done.returncode == 0, done.stderr[-8_000:]
    return folder / "html"


def build(folder: Path) -> None:
    """What `sphinx-build` does."""
    from sphinx.cmd.build import main

    os.chdir(ROOT)
    words = ["-q", "-W", "--keep-going", "docs", str(folder / "html"), "-d", str(folder / "trees")]
    sys.exit(main([*words, "-D", "nb_execution_mode=off"]))


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


@pytest.fixture(scope="module")
def visited(pages: list[Path], browser: Browser) -> dict[Path, dict[str, Any]]:
    """What a dark phone finds on each page, without a network, and what of its figures it sees when it turns light."""
    context = browser.new_context(viewport={"width": 375, "height": 800}, offline=True)
    phone, found, faults = context.new_page(), {}, []
    phone.on("pageerror", lambda fault: faults.append(str(fault)))
    phone.on("console", lambda said: faults.extend([said.text] * (said.type == "error")))
    phone.on("requestfailed", lambda request: faults.append(f"{request.url} could not be had"))
    for path in pages:
        phone.emulate_media(color_scheme="dark")
        phone.goto(path.as_uri(), wait_until="load")
        found[path] = phone.evaluate(PAGE) | {"dark": phone.evaluate(FIGURES)}
        phone.emulate_media(color_scheme="light")
        found[path] |= {"light": phone.evaluate(FIGURES), "faults": [*faults]}
        faults.clear()
    context.close()
    return found


PAGE = """() => {
    const all = (selector, told) => [...document.querySelectorAll(selector)].map(told);
    return {
        broken: all('img', i => i.complete && !i.naturalWidth && (i.alt || i.src.slice(0, 80))).filter(Boolean),
        width: document.documentElement.scrollWidth,
        links: all('a[href]', a => a.href),
        names: all('[id]', e => e.id),
        wordless: all("img:not([alt]), figure.shown img[alt='']", i => i.src.slice(0, 80)),
        figures: all('figure.shown', f => f.querySelectorAll(':scope > figcaption').length),
    };
}"""
FIGURES = """() => Object.fromEntries(['light', 'dark'].map(theme => {
    const all = [...document.querySelectorAll(`figure.shown img.only-${theme}`)];
    return [theme, [all.filter(i => i.checkVisibility()).length, all.length]];
}))"""


@needs_browser
def test_pages_have_no_error_nor_broken_picture_and_fit_on_a_phone(visited: dict[Path, dict[str, Any]]):
    faults: list[str] = []
    for path, page in visited.items():
        faults += [f"{path}: {words}" for words in page["faults"]]
        faults += [f"{path}: the picture {words!r} is broken" for words in page["broken"]]
        if page["width"] > 375:
            faults.append(f"{path}: {page['width']} pixels wide")
    assert not faults, "\n".join(faults)


@needs_browser
def test_every_link_within_the_site_leads_somewhere(visited: dict[Path, dict[str, Any]]):
    names = {path: set(page["names"]) for path, page in visited.items()}
    broken = []
    for page, found in visited.items():
        for link in found["links"]:
            target, fragment = urldefrag(link)
            if not target.startswith("file:"):
                continue
            path = Path(unquote(urlparse(target).path))
            if not path.is_file() or (fragment and path in names and unquote(fragment) not in names[path]):
                broken.append(f"{page} has {link}")
    assert not broken, "\n".join(broken)


@needs_browser
def test_a_figure_is_that_of_the_theme_and_has_words(visited: dict[Path, dict[str, Any]]):
    for path, page in visited.items():
        for theme, other in (("light", "dark"), ("dark", "light")):
            shown, there = page[theme][theme]
            assert (shown, page[theme][other][0]) == (there, 0), path
        assert page["figures"] == [1] * len(page["figures"]), path
        assert page["wordless"] == [], path
