"""After Ctrl-C or SIGTERM the process leaves in time, whatever its main thread does."""

import hashlib
import os
import signal
import sys
import threading
import time

import pytest
from forks import Forked

from vitreous import cli, leaving

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there a process cannot be sent these signals")
SOON = 20  # seconds that a busy machine may take for what takes none


def compute(rounds: int) -> None:
    """What no signal ends: the handlers would wait until it is done, and do nothing even where one comes before."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: None)
    print("begun", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", rounds)


def deaf(most: float) -> None:
    """A command whose main thread never hears of a signal."""
    leaving.MOST = most
    cli.main = lambda arguments=None: compute(2**31 - 1) or 0
    cli.entry()


def saving() -> None:
    """A command that is told to end while it saves, and takes its time."""
    leaving.MOST, leaving.AFTER = 0.01, SOON

    def save(arguments: object = None) -> int:
        with leaving.unhurried():
            compute(200_000)
            time.sleep(0.3)
        print("saved", flush=True)
        return 0

    cli.main = save
    cli.entry()


class Stubborn:
    """Keeps the interpreter when it is taken apart."""

    def __del__(self) -> None:
        compute(2**31 - 1)


def stubborn() -> None:
    """A command that leaves something behind that keeps the interpreter from ending."""

    def work(arguments: object = None) -> int:
        sys.stubborn = Stubborn()  # pyright: ignore[reportAttributeAccessIssue]
        print("interrupted")
        return 130

    cli.main = work
    cli.entry()


def obliging() -> None:
    """A command that ends in order once it is told to, and leaves such a thing behind."""

    def serve(arguments: object = None) -> int:
        came = threading.Event()
        sys.stubborn = Stubborn()  # pyright: ignore[reportAttributeAccessIssue]
        signal.signal(signal.SIGINT, lambda number, frame: came.set())
        print("begun", flush=True)
        while not came.wait(0.05):
            pass
        time.sleep(0.1)
        return 0

    cli.main = serve
    cli.entry()


def tidy() -> None:
    """A command that has something to tidy up."""

    def work(arguments: object = None) -> int:
        try:
            print("begun", flush=True)
            time.sleep(SOON)
        finally:
            print("tidying", flush=True)
            time.sleep(0.5)
            print("tidied", flush=True)
        return 0

    cli.main = work
    cli.entry()


def ended(process: Forked) -> tuple[int, str]:
    said, _ = process.communicate(timeout=SOON)
    return process.returncode, said


class TestLeaving:
    def test_a_second_ctrl_c_ends_what_hears_neither(self):
        process = Forked(deaf, 3600)
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert ended(process) == (130, "")

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_the_first_signal_ends_it_too_in_time(self, number, code):
        process = Forked(deaf, 0.2)
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        assert ended(process) == (code, "")

    def test_what_is_being_saved_may_take_longer(self):
        process = Forked(saving)
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert ended(process) == (0, "saved\n")

    def test_what_ends_in_order_once_it_is_told_to_keeps_its_exit_code(self):
        process = Forked(obliging)
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert ended(process) == (0, "")

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_sigterm_that_follows_does_not_cut_tidying_short(self, number, code):
        process = Forked(tidy)
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        assert process.stdout.readline() == "tidying\n"
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (code, "tidied\n")

    def test_an_interrupted_process_is_not_taken_apart(self):
        assert ended(Forked(stubborn)) == (130, "interrupted\n")
