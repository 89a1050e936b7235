"""The cache folder, and what killed processes leave."""

import os
import time

import pytest

from vitreous.data.cache import FORSAKEN, cache_root, remove_forsaken


def test_the_folder_is_the_named_one_or_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("VITREOUS_CACHE", str(tmp_path / "env"))
    assert cache_root() == tmp_path / "env"
    assert cache_root(str(tmp_path / "own")) == tmp_path / "own"
    monkeypatch.delenv("VITREOUS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "vitreous"


@pytest.mark.parametrize(
    ("folder", "file", "stays"), [("old", "old", False), ("old", "new", True), ("new", "old", True)]
)
def test_what_a_killed_process_left_goes_after_a_day_and_what_is_being_filled_stays(tmp_path, folder, file, stays):
    half, ages = tmp_path / ".partial-1", {"old": 2 * FORSAKEN, "new": 0.0}
    half.mkdir()
    (half / "0.raw").touch()
    (tmp_path / "photos").mkdir()
    for path, age in ((half / "0.raw", file), (half, folder), (tmp_path / "photos", "old")):
        os.utime(path, (time.time() - ages[age], time.time() - ages[age]))
    remove_forsaken(tmp_path, ".partial-*")
    assert half.exists() == stays
    assert (tmp_path / "photos").exists()
