"""What several tests share: a cache of their own, and small pictures and runs that are made once."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import making
import pytest
from browsing import FLAGS, find_browser
from filelock import FileLock
from playwright.sync_api import Browser, sync_playwright

import vitreous
from vitreous.cli import main
from vitreous.model.presets import PRESETS


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test ever touches the user's cache, and tiny models gain nothing from many threads."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("VITREOUS_CACHE", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield folder


@pytest.fixture(scope="session", autouse=True)
def _toys() -> Iterator[None]:
    """Models of two narrow blocks among the presets of this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, config in making.TOYS.items():
            patch.setitem(PRESETS, name, config)
        yield


Made = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Folders by name, each made by the first process of pytest-xdist that asks for it. Tests read it; they write to
    copies.
    """
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def made_once(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = root / "made" / name, root / f"{name}.made"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                make(folder)
                done.touch()
        return folder

    return made_once


@pytest.fixture(scope="session")
def shapes(made_once: Made) -> Path:
    """A folder of three classes of 16 coloured boxes, 24×32, PNG and JPEG."""
    return made_once("shapes", making.make_shapes)


@pytest.fixture(scope="session")
def shapes_run(shapes: Path, made_once: Made) -> Path:
    """A finished run on `shapes`."""
    options = {**making.TOY, "epochs": 20, "lr": 4e-3, "validation": 0.25}
    return made_once("run_on_shapes", lambda out: vitreous.train(shapes, out=out, **options))


@pytest.fixture(scope="session")
def blobs(made_once: Made) -> Path:
    """table.csv of 240 single-channel float32 pictures, 20×36, whose target is a place in mm."""
    return made_once("blobs", lambda root: making.make_blobs(root, 240)) / "table.csv"


@pytest.fixture(scope="session")
def blobs_run(blobs: Path, made_once: Made) -> Path:
    """A finished run on `blobs`, as it is typed, but for its small model."""
    options = ["--model", "toy_stem", "--optimizer", "adamw", "--lr", "4e-3", "--epochs", "8", "--threads", "1"]

    def make(out: Path) -> None:
        with making.unpainted():
            assert main(["train", str(blobs), *options, "--out", str(out)]) == 0

    return made_once("run_on_blobs", make)


@pytest.fixture
def unpainted() -> Iterator[None]:
    """The figures of runs are blank."""
    with making.unpainted():
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for the tests of a file; not for all: while it is there, no other event loop may run."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
        yield started
        started.close()
