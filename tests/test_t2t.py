"""Soft splits, token transformers, and the tokens-to-token module; patches beside them."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import KINDS, pictures, tiny_config, tiny_model

from vitreous.model.patch import PatchEmbedding
from vitreous.model.t2t import SoftSplit, TokensToToken, TokenTransformer


def by_loop(image: torch.Tensor, kernel: int, stride: int, padding: int) -> tuple[torch.Tensor, tuple[int, int]]:
    """Windows one after another, row by row, each flattened channel by channel; zeros beyond the edge."""
    B, C, H, W = image.shape
    tokens, gh, gw = [], 0, 0
    for top in range(-padding, H + padding - kernel + 1, stride):
        gh += 1
        gw = 0
        for left in range(-padding, W + padding - kernel + 1, stride):
            gw += 1
            token = torch.zeros(B, C, kernel, kernel)
            for y in range(kernel):
                for x in range(kernel):
                    if 0 <= top + y < H and 0 <= left + x < W:
                        token[:, :, y, x] = image[:, :, top + y, left + x]
            tokens.append(token.reshape(B, -1))
    return torch.stack(tokens, 1), (gh, gw)


class TestSoftSplit:
    @pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (7, 4, 2)])
    @pytest.mark.parametrize("size", [(12, 20), (13, 9), (21, 8)])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_equals_a_loop_over_windows(self, kernel, stride, padding, size, channels):
        image = torch.randn(2, channels, *size)
        tokens, grid = SoftSplit(kernel)(image)
        expected, expected_grid = by_loop(image, kernel, stride, padding)
        assert grid == expected_grid
        assert torch.equal(tokens, expected)


class TestTokenTransformer:
    @pytest.mark.parametrize(("token_scale", "scale"), [("input", 27**-0.5), ("head", 4**-0.5)])
    def test_follows_the_paper(self, token_scale, scale):
        """x = V + proj(softmax(QKᵀ·scale)V) of LN(x), without a residual over it; then x + MLP(LN(x))."""
        config = tiny_config("t2t", token_scale=token_scale, token_heads=2, norm_eps=1e-5)
        block = TokenTransformer(27, config)
        tokens = torch.randn(2, 6, 27)
        q, k, v = block.attention.qkv(F.layer_norm(tokens, (27,), block.attention_norm.weight)).chunk(3, -1)
        joined = torch.cat(
            [(a @ b.mT * scale).softmax(-1) @ c for a, b, c in zip(*(t.split(4, -1) for t in (q, k, v)), strict=True)],
            -1,
        )
        x = v + block.attention.projection(joined)
        expected = x + block.mlp.contract(F.gelu(block.mlp.expand(F.layer_norm(x, (8,), block.mlp_norm.weight))))
        torch.testing.assert_close(block(tokens), expected, rtol=0, atol=1e-5)

    def test_has_no_bias_in_its_queries_keys_and_values(self):
        assert TokenTransformer(27, tiny_config("t2t", qkv_bias=True)).attention.qkv.bias is None


class TestTokensToToken:
    def test_is_split_transform_split_project(self):
        config = tiny_config("t2t")
        module = tiny_model(config).tokenizer
        assert isinstance(module, TokensToToken)
        pixels = pictures(config)
        tokens, (gh, gw) = by_loop(pixels, 3, 2, 1)
        image = module.transformers[0](tokens).transpose(1, 2).reshape(2, 8, gh, gw)
        tokens, grid = by_loop(image, 3, 2, 1)
        got, got_grid = module(pixels)
        assert got_grid == grid == config.grid(*config.image_size)
        torch.testing.assert_close(got, module.projection(tokens), rtol=0, atol=1e-5)

    def test_one_kernel_is_a_soft_split_and_a_projection(self):
        config = tiny_config("t2t", kernels=(7,))
        module = tiny_model(config).tokenizer
        assert isinstance(module, TokensToToken)
        assert len(module.transformers) == 0
        pixels = pictures(config)
        tokens, grid = by_loop(pixels, 7, 4, 2)
        got, got_grid = module(pixels)
        assert got_grid == grid
        torch.testing.assert_close(got, module.projection(tokens), rtol=0, atol=1e-5)


class TestOrderOfTokens:
    @pytest.mark.parametrize("place", [(0, 0), (0, 39), (11, 0), (5, 17), (11, 39)])
    def test_a_marked_pixel_lands_in_the_token_of_its_row_and_column(self, place):
        config = tiny_config("patch")
        tokenizer = PatchEmbedding(config)
        pixels = torch.zeros(1, 3, *config.image_size)
        before, (_, gw) = tokenizer(pixels)
        pixels[0, :, place[0], place[1]] = 1
        changed = (tokenizer(pixels)[0] - before).abs().amax((0, 2)).nonzero().flatten().tolist()
        assert changed == [place[0] // 4 * gw + place[1] // 8]

    @pytest.mark.parametrize("place", [(0, 0), (0, 19), (11, 0), (6, 8)])
    def test_a_marked_pixel_lands_in_the_window_of_its_row_and_column(self, place):
        tokens, (gh, gw) = SoftSplit(3)(
            F.one_hot(torch.tensor(place[0] * 20 + place[1]), 240).view(1, 1, 12, 20).float()
        )
        touched = {divmod(i, gw) for i in tokens[0].amax(1).nonzero().flatten().tolist()}
        rows, columns = ({r for r in range(n) if abs(2 * r - p) <= 1} for n, p in ((gh, place[0]), (gw, place[1])))
        assert touched == {(r, c) for r in rows for c in columns}


@pytest.mark.parametrize("kind", KINDS)
def test_both_tokenizers_tell_the_grid_of_the_config(kind):
    config = tiny_config(kind)
    for size in ((12, 40), (24, 8), (40, 16)):
        tokens, grid = tiny_model(config).tokenizer(pictures(config, size))
        assert grid == config.grid(*size)
        assert tokens.shape == (2, grid[0] * grid[1], 16)
