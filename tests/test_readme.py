"""The README is true: its commands run as typed, and its tree, and the design's, are what is there.

Every line of its `sh` and `python` blocks is tried in a temporary folder that holds small data of the names that the
README uses. Only the time changes: ten minutes become one epoch, of small batches and on one thread, noise of 224×224
becomes smaller, and figures are left unpainted.
"""

import csv
import re
import shlex
import shutil
import tarfile
import tomllib
from pathlib import Path

import numpy as np
import pytest
from making import unpainted
from PIL import Image

from vitreous.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
DESIGN = (ROOT / "docs/design.md").read_text("utf-8")


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data that the README speaks of, of two classes: bright and dark pictures."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copy(ROOT / "tests/golden/paper_t2t_transformer.pth.tar", folder / "t2t_vit_t_14.pth.tar")
    rng = np.random.default_rng(0)
    bright = np.arange(24) % 2
    pictures = rng.integers(0, 128, (24, 8, 6, 3), np.uint8) + (bright[:, None, None, None] * 127).astype(np.uint8)
    for i, picture in enumerate(pictures):
        split = "test" if i >= 20 else "validation" if i >= 14 else "train"
        file = folder / "photos" / split / ("dress" if bright[i] else "hat") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
    with tarfile.open(folder / "photos.tar", "w") as tar:
        tar.add(folder / "photos", "photos")
    np.savez(folder / "arrays.npz", x_train=pictures[:16], y_train=bright[:16], x_val=pictures[16:], y_val=bright[16:])
    paths = [path.relative_to(folder).as_posix() for path in sorted(folder.glob("photos/*/*/*.png"))]
    ages = rng.uniform(20, 80, 24).round(1)
    write(folder / "scans.csv", ["path", "patient", "age"], [(p, i // 2, ages[i]) for i, p in enumerate(paths)])
    tags = rng.permuted(np.tile([0, 1], (3, 12)), axis=1).T.tolist()
    write(folder / "tags.csv", ["path", "indoor", "people", "night"], [(p, *tags[i]) for i, p in enumerate(paths)])
    return folder


def write(path: Path, header: list[str], rows: list[tuple]):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture(autouse=True)
def _in_that_folder(there: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(there)


@pytest.fixture(scope="module")
def typed(there: Path) -> dict[str, int]:
    """The README's commands, run in their order, and the exit code of each."""
    codes = {}
    with pytest.MonkeyPatch.context() as patch, unpainted():
        patch.chdir(there)
        patch.setattr("vitreous.insight.figures.model_pictures", lambda *_: [])
        for command in COMMANDS:
            words = shlex.split(command.replace("--minutes 10", "--epochs 1 --batch 4 --threads 1"))
            if words[0] == "vitreous":
                codes[command] = main(words[1:])
    return codes


def test_the_commands_run_as_typed(typed: dict[str, int], there: Path):
    assert {command: code for command, code in typed.items() if code} == {}
    verbs = {command.split()[1] for command in typed}
    assert verbs == {"check", "train", "eval", "predict", "export", "explain", "report"}
    with open(there / "answers.csv", encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 4


def test_commands_that_are_not_ours_name_what_is_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for command in COMMANDS:
        match shlex.split(command):
            case ["vitreous", *_]:
                pass
            case ["make", target]:
                assert target in targets
            case ["pip", "install", "-c", constraints, what]:
                assert (ROOT / constraints).is_file()
                assert set(re.findall(r"\w+", what)) <= set(extras)
            case _:
                pytest.fail(f"README has a command that nothing here tries: {command}")


@pytest.mark.usefixtures("unpainted")
def test_the_python_runs_as_typed(capsys: pytest.CaptureFixture[str]):
    for block in blocks("python"):
        quick = block.replace("minutes=10", "epochs=1, batch=4, threads=1").replace("224, 224", "64, 64")
        exec(compile(quick, "README.md", "exec"), {})
    assert len(re.findall(r"^photos/test/", capsys.readouterr().out, re.MULTILINE)) == 4


@pytest.mark.parametrize("page", [README, DESIGN], ids=["README", "design"])
def test_what_a_tree_names_is_there(page: str):
    for path in named_by_tree(page):
        assert (ROOT / path).exists(), f"the tree has {path}, which is not there"


def test_the_design_names_every_module():
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "vitreous").rglob("*.py") if p.name[0] != "_"}
    lacking = sorted(modules - named_by_tree(DESIGN))
    assert not lacking, f"the tree of docs/design.md lacks {lacking}"


def named_by_tree(page: str) -> set[str]:
    """The files and folders that the tree of a page names, from the root."""
    tree = next(block for block in blocks("text", page) if block.startswith("vitreous/"))
    folders: list[str] = []
    named = set()
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        for name in re.split(r"\s{2,}", line.strip())[0].split():
            named.add("".join([*folders[:depth], name]))
            if name.endswith("/"):
                folders[depth:] = [name]
    return named


@pytest.mark.usefixtures("typed")
def test_the_run_directory_is_as_described(there: Path):
    page = (ROOT / "docs/reference/run-directory.md").read_text("utf-8")
    rows = re.findall(r"^\| `(.*?)` \|", page, re.MULTILINE)
    described = {name.rstrip("/") for row in rows for name in row.split("`, `")}
    assert {path.name for path in (there / "runs" / "photos").iterdir()} == described
