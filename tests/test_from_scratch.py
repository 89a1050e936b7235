"""benchmarks/from_scratch.py: how answers become figures, and figures an exit status."""

import importlib.util
from pathlib import Path

import pytest

PLACE = Path(__file__).parents[1] / "benchmarks" / "from_scratch.py"


@pytest.fixture(scope="module")
def bench():
    place = importlib.util.spec_from_file_location("benchmark_from_scratch", PLACE)
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def answered(*right, first=0):
    """Answers about pictures of the class "a", numbered from `first` on."""
    return {str(number): ("a", "a" if hit else "b") for number, hit in enumerate(right, first)}


class TestAnswers:
    def test_what_is_written_is_read_again(self, bench, tmp_path):
        answers = {"a/1, old.png": ("a", "b"), "ü.png": ("b", "b")}
        bench.write_answers(answers, tmp_path / "answers.csv")
        assert bench.read_answers(tmp_path / "answers.csv") == answers

    def test_balanced_accuracy_is_the_mean_over_the_true_classes(self, bench):
        answers = {"1": ("a", "a"), "2": ("a", "a"), "3": ("a", "c"), "4": ("b", "a")}
        assert bench.accuracies(answers) == (pytest.approx(1 / 2), pytest.approx((2 / 3 + 0) / 2))

    def test_means_are_over_seeds_whatever_their_numbers_of_pictures(self, bench):
        said = bench.means([answered(1, 1), answered(1, 0, 0, 0)])
        assert said.startswith("top-1 62.50% (deviation 53.03, 25.00% to 100.00%)   balanced 62.50%")


class TestDifference:
    def test_one_seed_is_compared_picture_by_picture(self, bench):
        found = bench.difference([answered(*[1] * 60, *[0] * 40)], [answered(*[0] * 40, *[1] * 20, *[0] * 40)])
        assert (found.mean, found.pictures) == (40, 100)
        # 100 draws with a chance of 0.4: 40 ± 1.96 · √(100 · 0.4 · 0.6)
        assert (found.low, found.high) == (pytest.approx(30.4, abs=1), pytest.approx(49.6, abs=1))

    def test_pictures_are_drawn_with_all_their_seeds(self, bench):
        """Seeds that agree are no more pictures: the interval is that of one. A loss in one seed undoes a gain in
        another, and leaves nothing to vary.
        """
        ours, theirs = answered(*[1] * 40, *[0] * 60), answered(*[0] * 100)
        assert bench.difference([ours] * 3, [theirs] * 3) == bench.difference([ours], [theirs])
        assert bench.difference([ours, theirs], [theirs, ours]) == (0, 0, 0, 100)

    def test_every_seed_is_held_against_its_own_peer_on_its_own_pictures(self, bench):
        ours = [answered(1, 1, 1, 1), answered(1, 1, 0, 0, first=2)]
        theirs = [answered(1, 1, 0, 0), answered(0, 0, 0, 1, first=2)]
        found = bench.difference(ours, theirs)
        assert found.mean == pytest.approx((50 + 25) / 2)
        assert found.pictures == 6

    def test_pictures_that_one_side_was_not_asked_about_do_not_count(self, bench):
        assert bench.difference([answered(1, 1, 0)], [answered(0, 1)]).mean == 50
        with pytest.raises(ValueError, match="no picture was answered by both"):
            bench.difference([answered(1)], [answered(1, first=7)])


class TestWhatIsHeld:
    @pytest.mark.parametrize(
        ("top1", "share", "low", "missed"),
        [
            (0.87, 0.5, 0.1, []),
            (0.8699, 0.5, 0.1, ["top-1 of at least 87.0%"]),
            (0.87, 0.4999, 0.1, ["at least 50% of the multiply-accumulates in the encoder's blocks"]),
            (0.87, 0.5, 0.0, ["above resnet18, augmentation ours: +1.00 points (95 %: +0.00 to +2.00) on 9 pictures"]),
        ],
    )
    def test_the_exit_status_is_1_where_a_line_is_missed(self, bench, capsys, top1, share, low, missed):
        leads = {"theirs": bench.Difference(5, 4, 6, 9), "ours": bench.Difference(1, low, 2, 9)}
        status = bench.judge(bench.TASKS["cifar10"], 10.0, top1, share, leads)
        lines = capsys.readouterr().out.splitlines()
        assert [line.removeprefix("missed: ") for line in lines if line.startswith("missed: ")] == missed
        assert sum(line.startswith("held: ") for line in lines) == 4 - len(missed)
        assert status == (1 if missed else 0)

    def test_minutes_that_nothing_is_held_to_hold_no_accuracy(self, bench, capsys):
        assert bench.judge(bench.TASKS["cifar10"], 3.0, 0.1, 0.6, {}) == 0
        assert "top-1" not in capsys.readouterr().out


def test_the_digits_have_validation_pictures_for_a_peer_and_no_test_split(bench, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["from_scratch.py", "digits", "--peers", "python3", "--", "--threads", "1"])
    options, more = bench.parse()
    assert (options.peers, options.minutes, more) == ("python3", 1, ["--threads", "1"])
    monkeypatch.setattr("sys.argv", ["from_scratch.py", "digits", "--test"])
    with pytest.raises(SystemExit, match="2"):
        bench.parse()
    assert "digits has no test split; without --test the validation pictures are scored" in capsys.readouterr().err
