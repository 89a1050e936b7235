"""The plan of a run: its schedule, and what becomes of it when the clock says otherwise."""

import dataclasses
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest

from vitreous.data.augment import AugmentConfig
from vitreous.data.batches import Order
from vitreous.errors import InputError
from vitreous.model.presets import PRESETS, preset
from vitreous.training.plan import LAST_ROWS, Pace, Plan
from vitreous.training.recipe import (
    RECIPES,
    TrainConfig,
    choose_model,
    choose_threads,
    larger_model,
    machine_threads,
)
from vitreous.training.steps import row_steps


def plan(steps: int = 100, **fields: Any) -> Plan:
    usual: dict[str, Any] = {
        f.name: {int: 1, float: 0.5, str: "cpu", bool: False}.get(f.type) for f in dataclasses.fields(Plan)
    }
    usual |= {"optimizer": "muon", "precision": "fp32", "freeze": "none", "balance": "none"}
    own = {"points": ((0, 0.0, steps),), "lr": 1.0, "schedule": "linear", "warmup": 0.1, "coarse": 0.5, "budget": 100.0}
    return Plan(**{**usual, **own, "pace": Pace(0.5, 1.0, 2.0), "augmentation": AugmentConfig(), **fields})


class TestChooseModel:
    @pytest.mark.parametrize(
        ("options", "shapes", "expected"),
        [
            ({}, [(8, 8)], "vit_c_xs_2"),
            ({}, [(32, 32)] * 3, "vit_c_xs_4"),
            ({}, [(533, 400)] * 3 + [(32, 32)], "vit_c_xs_16"),
            ({"size": "48x36"}, [(533, 400)], "vit_c_xs_4"),
            ({"recipe": "patches"}, [(4, 4)], "vit_xs_1"),
            ({"recipe": "patches"}, [(533, 400)], "vit_xs_16"),
            ({"recipe": "t2t"}, [(8, 8)], "t2t_vit_xs_2"),
            ({"recipe": "t2t"}, [(32, 32)], "t2t_vit_xs_4"),
            ({"recipe": "t2t"}, [(533, 400)], "t2t_vit_xs_16"),
            ({"recipe": "paper"}, [(533, 400)], "vit_xs_16"),
            ({"model": "vit_s_16"}, [(8, 8)], "vit_s_16"),
        ],
    )
    def test_is_of_the_recipe_with_tokens_that_suit_the_median_picture(self, options, shapes, expected):
        assert choose_model(TrainConfig.of(**options), shapes) == PRESETS[expected]

    @pytest.mark.parametrize("recipe", RECIPES)
    def test_small_pictures_have_16_tokens_with_every_recipe(self, recipe):
        assert choose_model(TrainConfig.of(recipe=recipe), [(8, 8)]).grid(8, 8) == (4, 4)


class TestLargerModel:
    @pytest.mark.parametrize(
        ("name", "passes", "expected"),
        [
            ("vit_c_xs_4", 60, "vit_c_xs_4"),
            ("vit_c_xs_4", 150, "vit_c_s_4"),
            ("vit_c_xs_4", 100_000, "vit_c_s_4"),  # m was never measured
            ("vit_c_s_4", 100_000, "vit_c_s_4"),
            ("vit_c_m_4", 1000, "vit_c_m_4"),
            ("vit_xs_16", 1000, "vit_s_16"),
            ("t2t_vit_xs_4", 1000, "t2t_vit_xs_4"),
            ("vit_b_16", 1000, "vit_b_16"),
        ],
    )
    def test_is_the_largest_that_still_sees_the_pictures_often_enough(self, name, passes, expected):
        small = preset(name, image_size=(32, 32), outputs=7, channels=1)
        assert larger_model(small, passes) == preset(expected, image_size=(32, 32), outputs=7, channels=1)


class TestMinutes:
    @pytest.mark.parametrize(
        ("minutes", "expected"),
        [("10", 10), ("0.7", 0.7), (".5", 0.5), ("90s", 1.5), ("10 Min", 10), ("3m", 3), ("8 hours", 480), (480, 480)],
    )
    def test_are_a_number_or_a_time_and_kept_as_a_number(self, minutes, expected):
        config = TrainConfig.of(minutes=minutes)
        assert config.minutes == expected
        assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config

    @pytest.mark.parametrize("text", ["0", "0h", "-5", "1ms", "eight", "8 days", "1h30", "h", "", "nan", "1e3"])
    def test_what_is_neither_is_refused_with_what_to_type(self, text):
        expected = f"minutes is {text}: expected minutes, more than 0, as in 10, or a time, as in 90s, 10min or 8h"
        with pytest.raises(InputError, match=f"^{expected}$"):
            TrainConfig.of(minutes=text)

    @pytest.mark.parametrize("minutes", [0, -1.0, math.inf, math.nan, "9" * 400])
    def test_a_number_that_is_no_time_is_refused(self, minutes):
        with pytest.raises(InputError, match=r"minutes is .*: expected a number above 0"):
            TrainConfig.of(minutes=minutes)


class TestChooseThreads:
    @pytest.mark.parametrize(
        ("threads", "variable", "processes", "expected"),
        [
            (3, "1", "1", 3),
            (None, "5", "1", 5),
            (None, "1", "1", 1),
            (None, "5", "2", 5),
            (None, "1", "2", 0),  # torchrun says so where nobody else does
            (None, "", "1", 0),
            (None, "0", "1", 0),
            (None, "4,2", "1", 0),
        ],
    )
    def test_the_option_comes_before_the_variable_and_that_before_the_cores(
        self, monkeypatch, threads, variable, processes, expected
    ):
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert choose_threads(threads) == (expected or machine_threads())


class TestRate:
    @pytest.mark.parametrize("schedule", ["linear", "cosine"])
    def test_rises_to_its_peak_and_falls_to_almost_nothing(self, schedule):
        rates = [plan(schedule=schedule).rate(step) for step in range(100)]
        assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
        assert rates[10] == max(rates) == 1.0
        assert rates[10:] == sorted(rates[10:], reverse=True)
        assert 0 < rates[-1] < 0.02

    def test_without_warmup_begins_at_its_peak(self):
        assert plan(warmup=0.0).rate(0) == 1.0


class TestRetimed:
    def test_rows_of_metrics_that_were_due_before_the_end_moved_stay_due(self):
        order = Order([np.arange(48)], 16, 0)  # three steps an epoch
        assert row_steps(order, plan(22)) == {3, 6, 9, 12, 15, 18, 22}
        assert row_steps(order, plan(points=((0, 0.0, 22), (18, 0.8, 19)))) == {3, 6, 9, 12, 15, 18, 19}

    def test_what_was_before_stays_as_it_is_to_the_bit(self):
        first = plan(97)
        second = first.retimed(31, 50.0, 1.3, 10)
        third = second.retimed(47, 60.0, 0.7, 10)
        assert third.steps not in (first.steps, second.steps)
        for step in range(31):
            assert first.rate(step) == second.rate(step) == third.rate(step)
        for step in range(31, 47):
            assert second.rate(step) == third.rate(step)

    def test_the_rate_goes_on_without_a_jump_and_ends_at_the_new_end(self):
        new = plan().retimed(40, 80.0, 1.5, 10)
        rates = [new.rate(step) for step in range(new.steps)]
        assert max(abs(a - b) for a, b in itertools.pairwise(rates[39:])) < 0.1
        assert new.done(new.steps) == 1.0
        assert new.done(40) == plan().done(40)

    def test_a_slower_machine_gets_fewer_steps_and_a_faster_one_more(self):
        steps = [plan().retimed(50, 50.0, slower, 10).steps for slower in (0.5, 1.0, 2.0)]
        assert steps[0] > steps[1] > steps[2]

    @pytest.mark.parametrize("slower", [0.5, 1.0, 3.0])
    def test_the_rest_fits_in_what_is_left(self, slower):
        new = plan().retimed(20, 30.0, slower, 10)
        rest = slower * new.predicted(20, new.steps, (new.steps - 20) / 10)
        assert 70 - (2 * LAST_ROWS + 2) * slower <= rest <= 70

    def test_whole_pictures_begin_where_the_share_is_done(self):
        assert plan().coarse_steps == 50
        new = plan().retimed(20, 5.0, 0.5, 10)
        assert new.done(new.coarse_steps) == pytest.approx(0.5, abs=0.01)
        assert plan().retimed(70, 5.0, 0.5, 10).coarse_steps == 50  # they had begun

    def test_with_no_time_left_one_step_is(self):
        assert plan().retimed(60, 500.0, 1.0, 10).steps == 61

    def test_survives_json(self):
        new = plan().retimed(20, 30.0, 1.1, 10)
        assert Plan.from_json(new.to_json()) == new
