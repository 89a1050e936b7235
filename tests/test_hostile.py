"""Files that mean harm are refused, run nothing, and read nothing outside: the artefacts of `hostile.py`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hostile
import pytest
from hostile import ARTEFACTS, READERS, Artefact, Place
from PIL import Image

from vitreous.errors import InputError

heard: list[tuple[str, str]] | None = None  # events while an artefact is read


def listen(event: str, arguments: tuple) -> None:
    if event == "subprocess.Popen" and "from vitreous.data." in str(arguments[1]):
        return  # our own, that opens files
    if heard is not None and event in ("open", "pickle.find_class", "subprocess.Popen", "os.system", "socket.connect"):
        heard.append((event, str(arguments[0])))


@pytest.fixture(scope="module", autouse=True)
def hook() -> None:
    sys.addaudithook(listen)  # of which there is no end, so it is silent but for `hearing`


@contextmanager
def hearing() -> Iterator[list[tuple[str, str]]]:
    global heard
    heard = found = []
    try:
        yield found
    finally:
        heard = None


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "own").mkdir()
    (tmp_path / "outside").mkdir()
    secret = tmp_path / "outside" / "secret.png"
    Image.new("RGB", (24, 16)).save(secret)
    return Place(tmp_path / "own", tmp_path / "canary", secret)


def test_there_are_many_of_them_and_each_has_a_name_of_its_own():
    assert len(ARTEFACTS) >= 40
    assert len({artefact.name for artefact in ARTEFACTS}) == len(ARTEFACTS)


@pytest.mark.parametrize("artefact", ARTEFACTS, ids=lambda artefact: artefact.name)
def test_it_is_refused_and_runs_and_reads_nothing(artefact: Artefact, place: Place):
    path = artefact.make(place)
    with hearing() as found:
        if artefact.passed_over:
            READERS[artefact.reader](path)
        else:
            with pytest.raises(InputError) as fault:
                READERS[artefact.reader](path)
            assert 20 < len(str(fault.value)) < 5_000
    assert not place.canary.exists()
    assert [what for what in found if what[0] != "open" or str(place.secret.parent) in what[1]] == []


def test_without_the_harm_they_are_read(place: Place):
    hostile.read_run(hostile.make_run(place))
    hostile.read_plan(place.folder / "run")
    hostile.read_export(hostile.make_onnx(place))
    hostile.read_data(hostile.make_tar(place, lambda tar, content: None))


def test_the_canary_sings_where_code_runs(place: Place):
    exec(place.call.__reduce__()[1][0])
    assert place.canary.exists()
