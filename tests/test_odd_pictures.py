"""Odd and broken pictures: the right pixels or an error that names the file, and no process dies of one."""

import importlib.util
from pathlib import Path

import pytest
from odd_pictures import KINDS, make, verdict

from vitreous.data.workers import Decoders

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
EACH = 2


def line(name: str):
    """A module of the lines that the project is held to."""
    place = importlib.util.spec_from_file_location(f"line_{name}", BENCHMARKS / "lines" / f"{name}.py")
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def decoders():
    """Of one gigabyte each."""
    one = Decoders(memory=1 << 30)
    yield one
    one.close()


@pytest.mark.parametrize("kind", KINDS)
def test_an_odd_picture_is_read_right_or_refused_by_name(kind, decoders):
    for number in range(EACH):
        assert verdict(make(kind, number), decoders.read) in ("read", "refused")
        assert len(decoders.pids) == 1


@pytest.mark.parametrize("number", [9, 13, 23])  # its planes, and twice its bits a sample
def test_a_tiff_is_refused_where_a_tag_that_its_pixels_depend_on_cannot_be_read(number, decoders):
    assert verdict(make("tiff_with_an_odd_tag", number), decoders.read) == "refused"


def test_one_process_read_them_all(decoders):
    before = decoders.pids
    assert verdict(make("png_interlaced", 0), decoders.read) == "read"
    assert decoders.pids == before


def test_train_predict_serve_and_export_give_the_model_the_same_bits(tmp_path, capsys):
    held = line("pictures").same_inputs(tmp_path)
    assert held, capsys.readouterr().out


def test_mutated_files_end_nothing(tmp_path, capsys):
    mutations = line("mutations")
    assert mutations.run(mutations.argparse.Namespace(count=150, seed=5, folder=tmp_path)), capsys.readouterr().out
