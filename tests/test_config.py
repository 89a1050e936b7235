"""ModelConfig and the table of presets."""

import dataclasses
import json
import re

import pytest
import torch
from tiny_models import KINDS, tiny_config

from vitreous.errors import InputError
from vitreous.model.config import ModelConfig, split_length
from vitreous.model.presets import PRESETS, preset
from vitreous.model.vit import VisionTransformer, count_macs, count_parameters


def parameters(config: ModelConfig) -> int:
    with torch.device("meta"):
        return count_parameters(VisionTransformer(config))


class TestGrid:
    @pytest.mark.parametrize(
        ("size", "patch", "grid"),
        [((224, 224), (16, 16), (14, 14)), ((160, 384), (16, 16), (10, 24)), ((12, 40), (4, 8), (3, 5))],
    )
    def test_patches_are_counted_height_first(self, size, patch, grid):
        assert ModelConfig(patch_size=patch, image_size=size).grid(*size) == grid

    @pytest.mark.parametrize("kernel", [1, 2, 3, 5, 7])
    @pytest.mark.parametrize("length", [7, 8, 31, 32, 500])
    def test_soft_splits_count_as_unfold_does(self, length, kernel):
        stride, padding = (kernel + 1) // 2, (kernel + 1) // 4
        windows = torch.nn.functional.unfold(torch.zeros(1, 1, length, kernel), kernel, stride=stride, padding=padding)
        across = (kernel + 2 * padding - kernel) // stride + 1
        assert split_length(length, kernel) == windows.shape[2] // across

    def test_tokens_to_token_takes_any_size(self):
        assert preset("t2t_vit_t_14").grid(1700, 500) == (107, 32)
        assert preset("t2t_vit_t_14").grid(224, 224) == (14, 14)

    @pytest.mark.parametrize(
        ("size", "words"),
        [
            ((13, 40), ["height 12 or 16 would", "width 40 is fine"]),
            ((12, 41), ["height 12 is fine", "width 40 or 48 would"]),
            ((3, 7), ["height 4 would", "width 8 would"]),
        ],
    )
    def test_a_size_that_does_not_divide_names_sizes_that_do(self, size, words):
        config = tiny_config("patch")
        with pytest.raises(InputError, match=f"{size[0]}×{size[1]}") as fault:
            config.grid(*size)
        assert all(word in str(fault.value) for word in words)
        for side, lengths in re.findall(r"(height|width) ([\d or]+) would", str(fault.value)):
            for length in map(int, lengths.split(" or ")):
                config.grid(*((length, 40) if side == "height" else (12, length)))

    @pytest.mark.parametrize("kernels", [(7, 3, 3), (3, 3), (5, 5), (2,), (9, 7, 2), (2, 2, 2)])
    def test_a_picture_too_small_for_soft_splits_names_the_least_size(self, kernels):
        config = ModelConfig(tokenizer="t2t", kernels=kernels)
        least = next(n for n in range(1, 200) if min(lengths(n, kernels)) >= 1)
        assert min(config.grid(least, least)) >= 1
        if least > 1:
            with pytest.raises(InputError, match=f"at least {least}×{least}$"):
                config.grid(least - 1, 64)


def lengths(n: int, kernels: tuple[int, ...]) -> list[int]:
    found = []
    for kernel in kernels:
        n = split_length(n, kernel)
        found.append(n)
    return found


class TestFaults:
    def test_every_fault_is_reported_together(self):
        with pytest.raises(InputError) as fault:
            ModelConfig(
                tokenizer="patches",
                position="rope",
                pool="max",
                channels=0,
                outputs=-1,
                width=42,
                heads=4,
                token_width=6,
                token_heads=4,
                kernels=(),
                head_hidden=-3,
                mlp_ratio=0.0,
                position_temperature=1.0,
                image_size=(224, 0),
            )
        message = str(fault.value)
        for words in (
            "tokenizer is 'patches': expected one of patch, t2t",
            "position is 'rope'",
            "pool is 'max'",
            "channels is 0: expected a whole number above 0",
            "outputs is -1",
            "width 42 does not divide by 4 heads",
            "token_width 6 does not divide by 4 token_heads",
            "kernels is ()",
            "head_hidden is -3",
            "mlp_ratio",
            "position_temperature",
            "image_size is (224, 0)",
        ):
            assert words in message

    def test_a_size_that_does_not_divide_is_reported_with_the_others(self):
        with pytest.raises(InputError) as fault:
            ModelConfig(image_size=(225, 224), heads=5)
        assert "height 224 or 240 would" in str(fault.value)
        assert "does not divide by 5 heads" in str(fault.value)

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"width": 30, "heads": 3}, "width 30 does not divide by 4, as sincos2d needs"),
            ({"width": 15, "heads": 3, "position": "sinusoid"}, "width 15 does not divide by 2, as sinusoid needs"),
            ({"class_position": True}, "class_position without a class token"),
            ({"patch_size": 16}, "patch_size is 16"),
            ({"image_size": [224, 224]}, "image_size is"),
            ({"kernels": (7, 0)}, "kernels is"),
        ],
    )
    def test_what_does_not_fit_is_named(self, fields, words):
        with pytest.raises(InputError, match=re.escape(words)):
            ModelConfig(**fields)

    def test_a_width_of_two_parts_does_for_the_sinusoid(self):
        assert ModelConfig(width=30, heads=3, position="sinusoid").width == 30


class TestJson:
    @pytest.mark.parametrize(
        "config", [*PRESETS.values(), *(tiny_config(kind, pool="class", class_position=True) for kind in KINDS)]
    )
    def test_a_config_comes_back_from_its_json_text(self, config):
        assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config

    def test_a_field_of_another_version_is_named(self):
        with pytest.raises(InputError, match="experts"):
            ModelConfig.from_json({**ModelConfig().to_json(), "experts": 4})


class TestPresets:
    @pytest.mark.parametrize(
        ("name", "millions"),
        [
            ("vit_b_16", 86),
            ("vit_l_16", 307),
            ("vit_h_14", 632),
            ("deit_ti_16", 5.7),
            ("deit_s_16", 22),
            ("deit_distilled_b_16", 87),
            ("deit3_l_16", 304),
            ("dinov2_g_14", 1138),
        ],
    )
    def test_parameters_are_those_of_the_papers(self, name, millions):
        assert parameters(PRESETS[name]) / 1e6 == pytest.approx(millions, rel=0.01)

    @pytest.mark.parametrize(
        ("name", "millions", "billions"),
        [
            ("7", 4.3, 1.1),
            ("10", 5.9, 1.5),
            ("12", 6.9, 1.8),
            ("14", 21.5, 4.8),
            ("19", 39.2, 8.5),
            ("24", 64.1, 13.8),
            ("t_14", 21.5, 6.1),
            ("t_19", 39.2, 9.8),
            ("t_24", 64.1, 15.0),
        ],
    )
    def test_t2t_vits_are_as_large_and_as_much_work_as_the_paper_says(self, name, millions, billions):
        """The paper counts its fixed sinusoid table too, and rounds to one decimal: 1.1 may be 1.15."""
        config = PRESETS[f"t2t_vit_{name}"]
        with torch.device("meta"):
            fixed = sum(buffer.numel() for buffer in VisionTransformer(config).buffers()) + 197 * config.width
        assert (parameters(config) + fixed) / 1e6 == pytest.approx(millions, abs=0.05)
        work = count_macs(config, 224, 224) / 1e9
        assert work == pytest.approx(billions, rel=0.02) or abs(work - billions) < 0.05

    @pytest.mark.parametrize(("name", "learned"), [("14_se", 21723854), ("16_ghost", 16173518), ("dense", 23617750)])
    def test_ablations_learn_as_many_numbers_as_those_of_the_papers_code(self, name, learned):
        assert parameters(PRESETS[f"t2t_vit_{name}"]) == learned

    def test_names_tell_the_patch_size(self):
        for name, config in PRESETS.items():
            if name.startswith("vit_"):
                assert config.stride == (int(name.rsplit("_", 1)[1]),) * 2

    def test_overrides_replace_fields(self):
        config = preset("vit_s_16", outputs=10, channels=1, image_size=(96, 160))
        assert config == dataclasses.replace(PRESETS["vit_s_16"], outputs=10, channels=1, image_size=(96, 160))

    @pytest.mark.parametrize(
        ("name", "near"), [("vit_b16", "vit_b_16"), ("vit-s-16", "vit_s_16"), ("t2t_vit_t14", "t2t_vit_t_14")]
    )
    def test_an_unknown_name_suggests_near_ones(self, name, near):
        with pytest.raises(InputError, match=f"did you mean .*{near}"):
            preset(name)

    def test_a_name_near_none_points_to_the_list(self):
        with pytest.raises(InputError, match="vitreous models"):
            preset("zzzzzzzzz")

    def test_an_unknown_field_suggests_a_near_one(self):
        with pytest.raises(InputError, match=r"no field 'output': did you mean outputs"):
            preset("vit_s_16", output=3)
