"""The code of every page of the documentation runs: at small sizes, in one process, without a notebook.

That takes some minutes, and is done where VITREOUS_DOCS_QUICK=1 asks for it. `make docs` runs the pages at their own
sizes, each in a kernel, and paints their figures, which are only drawn here.
"""

import ast
import importlib
import os
import re
import socket
from pathlib import Path
from unittest.mock import patch

import pytest

from vitreous.model.presets import PRESETS

DOCS = Path(__file__).parent.parent / "docs"
CELL = re.compile(r"^```\{code-cell\} python3\n(?::[^\n]*\n)*(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if CELL.search(page.read_text("utf-8"))]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What several pages have from one training."""
    return tmp_path_factory.mktemp("made")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_imports_of_the_package_is_there(page: Path):
    faults = []
    for cell in CELL.findall(page.read_text("utf-8")):
        for node in ast.walk(ast.parse(cell)):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "vitreous":
                module = importlib.import_module(str(node.module))
                faults += [f"{node.module}.{name.name}" for name in node.names if not hasattr(module, name.name)]
    assert not faults


@pytest.mark.skipif(os.environ.get("VITREOUS_DOCS_QUICK") != "1", reason="takes minutes; VITREOUS_DOCS_QUICK=1 runs it")
@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # of torch, when figures are made of tensors
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VITREOUS_DOCS_MADE", str(made))
    monkeypatch.setenv("VITREOUS_CACHE", str(tmp_path / "cache"))  # set again by pages, and afterwards as it was
    monkeypatch.syspath_prepend(DOCS / "tour")
    monkeypatch.chdir(tmp_path)
    showing = importlib.import_module("showing")
    monkeypatch.setattr(showing, "_svg", lambda figure: "")
    monkeypatch.setattr(showing, "_png", lambda figure: "")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    names: dict[str, object] = {"__name__": "__main__"}
    with patch.dict(PRESETS):  # pages add models of their own
        for number, cell in enumerate(CELL.findall(page.read_text("utf-8")), 1):
            exec(compile(cell.replace("8765", port), f"{page.name}, cell {number}", "exec"), names)
