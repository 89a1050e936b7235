import pytest
import torch
from tiny_models import pictures, tiny_config, tiny_model
from torch import nn

from vitreous.errors import InputError
from vitreous.model.stem import Convolution


class TestConvolution:
    @pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (4, 2, 1), (8, 4, 2)])
    def test_computes_what_a_conv2d_with_its_weight_does(self, kernel, stride, padding):
        layer = Convolution(4, 6, kernel, stride, bias=True)
        reference = nn.Conv2d(4, 6, kernel, stride, padding)
        nn.init.normal_(layer.weight)
        reference.load_state_dict({"weight": layer.weight.unflatten(1, (4, kernel, kernel)), "bias": layer.bias})
        image = torch.randn(2, 4, 16, 24)
        torch.testing.assert_close(layer(image), reference(image))
        assert layer(image).shape[2:] == (16 / stride, 24 / stride)
        assert layer.weight.ndim == 2  # Muon takes no other


class TestConvolutionStem:
    @pytest.mark.parametrize(
        ("stride", "size", "grid"), [(1, (12, 20), (3, 5)), (2, (24, 40), (3, 5)), (4, (32, 16), (2, 1))]
    )
    def test_makes_a_token_of_each_stride_by_stride_pixels(self, stride, size, grid):
        config = tiny_config("stem", stem_stride=stride, image_size=size)
        tokens, found = tiny_model(config).tokenizer(pictures(config))
        assert found == grid == config.grid(*size)
        assert tokens.shape == (2, grid[0] * grid[1], config.width)

    def test_a_token_sees_what_lies_around_it_and_not_what_is_far(self):
        config = tiny_config("stem", image_size=(32, 32))
        model, image = tiny_model(config), pictures(config)
        far = image.clone()
        far[..., 24:, 24:] = 0
        (a, _), (b, _) = model.tokenizer(image), model.tokenizer(far)
        assert torch.equal(a[:, 0], b[:, 0])
        assert not torch.equal(a[:, -1], b[:, -1])

    def test_a_picture_that_does_not_divide_is_refused_with_sizes_that_do(self):
        with pytest.raises(InputError, match=r"12×22.*tokens of 4×4 pixels.*20 or 24"):
            tiny_model(tiny_config("stem"))(torch.zeros(1, 3, 12, 22))
