"""What several tests share: a cache of their own, and small pictures and runs that are made once."""

from collections.abc import Iterator
from pathlib import Path

import making
import pytest
from browsing import FLAGS, find_browser
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


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three classes of 16 coloured boxes, 24×32, PNG and JPEG."""
    return making.make_shapes(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture(scope="session")
def shapes_run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on `shapes`. Tests read it; they write to copies."""
    options = {**making.TOY, "epochs": 20, "lr": 4e-3, "validation": 0.25}
    return vitreous.train(shapes, out=tmp_path_factory.mktemp("runs") / "shapes", **options)


@pytest.fixture(scope="session")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """table.csv of 240 single-channel float32 pictures, 20×36, whose target is a place in mm."""
    return making.make_blobs(tmp_path_factory.mktemp("data") / "blobs", 240)


@pytest.fixture(scope="session")
def blobs_run(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on `blobs`, as it is typed, but for its small model."""
    out = tmp_path_factory.mktemp("runs") / "blobs"
    options = ["--model", "toy_stem", "--optimizer", "adamw", "--lr", "4e-3", "--epochs", "8", "--threads", "1"]
    assert main(["train", str(blobs), *options, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for the tests of a file; not for all: while it is there, no other event loop may run."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
        yield started
        started.close()
