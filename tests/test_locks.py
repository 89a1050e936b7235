"""Locked files."""

import subprocess
import sys

from vitreous.locks import locked


def test_a_file_is_locked_by_one_at_a_time_and_can_be_written_meanwhile(tmp_path):
    path = tmp_path / "log.txt"
    with locked(path) as first, locked(path) as second:
        assert (first, second) == (True, False)
        with open(path, "a") as file:
            file.write("a line")
    with locked(path) as again:
        assert again
    assert path.read_text() == "a line"


def test_it_ends_with_a_process_that_is_killed(tmp_path):
    code = (
        "import sys; from pathlib import Path; from vitreous.locks import locked\n"
        "with locked(Path(sys.argv[1])) as free: print(free, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "log.txt")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        with locked(tmp_path / "log.txt") as free:
            assert not free
        process.kill()
        process.wait()
    with locked(tmp_path / "log.txt") as free:
        assert free


def test_what_cannot_be_written_is_nobodys(tmp_path):
    for path in (tmp_path, tmp_path / "missing" / "log.txt"):
        with locked(path) as first, locked(path) as second:
            assert (first, second) == (True, True)
