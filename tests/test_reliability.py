"""benchmarks/reliability.py: the cheap lines at small counts, by the code that runs them at their full ones."""

import argparse
import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize(("line", "count"), [("damage", 25), ("poison", 4)])
def test_a_line_holds(line, count, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    options = argparse.Namespace(count=count, seed=1, folder=tmp_path, data=None)
    assert importlib.import_module(f"lines.{line}").run(options), capsys.readouterr().out
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{count} ")


def test_it_lists_its_lines_and_refuses_others(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    reliability = importlib.import_module("reliability")
    monkeypatch.setattr(reliability, "names", lambda: ["damage", "memory"])
    monkeypatch.setattr("sys.argv", ["reliability.py"])
    assert reliability.main() == 0
    assert "damage           500  Bit flips and truncations" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["reliability.py", "kill"])
    assert reliability.main() == 2


def test_no_line_hides_a_module_of_the_standard_library():
    """Some lines run themselves in processes of their own, where their folder comes first."""
    lines = {path.stem for path in (BENCHMARKS / "lines").glob("*.py")}
    assert not lines & sys.stdlib_module_names
