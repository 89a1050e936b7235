import pytest
import torch
from tiny_models import pictures, tiny_config, tiny_model
from torch import nn

from vitreous.errors import InputError
from vitreous.model.stem import Convolution, Whitening


def whitened(stride: int, channels: int = 3, filters: int = 200) -> tuple[Whitening, torch.Tensor]:
    """A layer fitted to smooth pictures, whose neighbours are alike, and its responses before the GELU, (places, c)."""
    noise = torch.randn(40, channels, 40, 40, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.avg_pool2d(noise, 5, stride=1, padding=2)
    layer = Whitening(channels, filters, stride)
    layer.fit(smooth)
    return layer, nn.functional.conv2d(smooth, layer.filters, stride=stride).movedim(1, -1).flatten(0, 2)


class TestConvolution:
    @pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (5, 2, 0)])
    def test_computes_what_a_conv2d_with_its_weight_does(self, kernel, stride, padding):
        layer, reference = (
            Convolution(4, 6, kernel, stride, padding),
            nn.Conv2d(4, 6, kernel, stride, padding, bias=False),
        )
        nn.init.normal_(layer.weight)
        reference.load_state_dict({"weight": layer.weight.detach().unflatten(1, (4, kernel, kernel))})
        image = torch.randn(2, 4, 9, 11)
        torch.testing.assert_close(layer(image), reference(image))
        assert layer.weight.ndim == 2  # Muon takes no other


class TestWhitening:
    @pytest.mark.parametrize("stride", [1, 2])
    def test_responses_to_the_pictures_it_was_fitted_to_are_uncorrelated_and_of_one_size(self, stride):
        layer, responses = whitened(stride)
        found = min(len(layer.filters), layer.filters[0].numel())
        covariance = responses[:, :found].T.cov()
        variances = covariance.diag()
        assert (covariance - variances.diag()).abs().max() < 0.02
        assert 0.9 < variances[:3].min() <= variances[:3].max() <= 1.0

    def test_the_first_filters_see_most(self):
        layer, _ = whitened(1)
        assert layer.filters[0].sum().abs() < layer.filters[0].abs().sum() * 1.01  # of one sign: the mean of the window
        assert layer.filters[0].norm() < layer.filters[5].norm()  # what varies much is scaled up less

    def test_each_filter_has_its_negative(self):
        layer, _ = whitened(1, filters=12)
        half = layer(pictures(tiny_config("stem"))).unflatten(1, (2, 6))
        gelu = nn.functional.gelu
        responses = nn.functional.conv2d(pictures(tiny_config("stem")), layer.filters, padding=1)
        torch.testing.assert_close(half[:, 0], gelu(responses))
        torch.testing.assert_close(half[:, 1], gelu(-responses))

    def test_more_filters_than_components_leaves_the_rest_as_they_were(self):
        layer = Whitening(1, 40, 1)
        before = layer.filters.clone()
        layer.fit(torch.randn(4, 1, 16, 16))
        assert not torch.equal(layer.filters[:9], before[:9])
        assert torch.equal(layer.filters[9:], before[9:])


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
