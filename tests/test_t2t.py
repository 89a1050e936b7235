"""Soft splits, token transformers, and the tokens-to-token module; patches beside them."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import KINDS, pictures, tiny_config, tiny_model

from vitreous.errors import InputError
from vitreous.model.patch import PatchEmbedding
from vitreous.model.t2t import ConvolutionTokens, SoftSplit, TokenPerformer, TokensToToken, TokenTransformer


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
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_equals_a_loop_over_windows(self, kernel, stride, padding, size, channels, layout):
        image = torch.randn(2, channels, *size).contiguous(memory_format=layout)
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


class TestTokenPerformer:
    def performer(self, features: int = 4, width: int = 8) -> TokenPerformer:
        generator = torch.Generator().manual_seed(0)
        block = TokenPerformer(27, tiny_config("performer", token_width=width, norm_eps=1e-5))
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.normal_(std=0.2, generator=generator)
            rows = [
                torch.linalg.qr(torch.randn(width, width, generator=generator))[0] for _ in range(features // width)
            ]
            if rows:  # blocks of orthogonal directions as long as normal ones are
                lengths = torch.randn(features, width, generator=generator).norm(dim=1, keepdim=True)
                block.directions = torch.cat(rows) * lengths
        return block

    def test_follows_the_formula_token_by_token(self):
        """y(i) = Σ_j φ(q_i)·φ(k_j) v_j / Σ_j φ(q_i)·φ(k_j), φ(x)_r = exp(w_r·x - |x|²/2) / √m; then as the paper."""
        block, tokens = self.performer(), torch.randn(2, 6, 27, generator=torch.Generator().manual_seed(1))
        norm = block.attention_norm
        k, q, v = block.kqv(F.layer_norm(tokens, (27,), norm.weight, norm.bias, 1e-5)).split(8, -1)

        def phi(x: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.exp(w @ x - x @ x / 2) for w in block.directions]) / 4**0.5

        joined = torch.zeros_like(v)
        for b in range(2):
            for i in range(6):
                weights = torch.stack([phi(q[b, i]) @ phi(k[b, j]) for j in range(6)])
                joined[b, i] = (weights / (weights.sum() + 1e-8)) @ v[b]
        x = v + block.projection(joined)
        norm = block.mlp_norm
        hidden = F.gelu(block.mlp.expand(F.layer_norm(x, (8,), norm.weight, norm.bias, 1e-5)))
        torch.testing.assert_close(block(tokens), x + block.mlp.contract(hidden), rtol=0, atol=1e-5)

    def test_with_many_features_it_nears_softmax_attention(self):
        block, tokens = self.performer(8192), torch.randn(2, 6, 27, generator=torch.Generator().manual_seed(1))
        k, q, v = block.kqv(block.attention_norm(tokens)).chunk(3, -1)
        x = v + block.projection((q @ k.mT).softmax(-1) @ v)
        exact = x + block.mlp(block.mlp_norm(x))
        assert (block(tokens) - exact).abs().max() < 0.05 * exact.abs().max()
        few = self.performer()
        assert (few(tokens) - exact).abs().max() > (block(tokens) - exact).abs().max()

    def test_its_directions_are_orthogonal_fixed_and_saved(self):
        block = TokenPerformer(27, tiny_config("performer"))
        assert block.directions.shape == (4, 8)
        torch.testing.assert_close(block.directions @ block.directions.T, 4 * torch.eye(4), rtol=0, atol=1e-5)
        assert "directions" in block.state_dict()
        assert "directions" not in dict(block.named_parameters())

    def test_has_one_head_alone(self):
        with pytest.raises(InputError, match="expected token_heads 1"):
            tiny_config("performer", token_heads=2)


class TestConvolutionTokens:
    @pytest.mark.parametrize("kernels", [(7, 3, 3), (3, 3), (5, 2), (7,)])
    @pytest.mark.parametrize("size", [(32, 48), (33, 19), (25, 64)])
    def test_its_grid_is_that_of_soft_splits(self, kernels, size):
        config = tiny_config("convolution", kernels=kernels, image_size=(32, 32))
        image, grid = torch.randn(2, 3, *size), size
        tokens, got = ConvolutionTokens(config)(image)
        for kernel in kernels:
            _, grid = SoftSplit(kernel)(torch.zeros(1, 1, *grid))
        assert got == grid
        assert tokens.shape == (2, grid[0] * grid[1], 16)

    def test_is_soft_splits_with_one_linear_layer_after_each(self):
        config = tiny_config("convolution")
        module = tiny_model(config).tokenizer
        assert isinstance(module, ConvolutionTokens)
        image = pictures(config)
        tokens, grid = image, (0, 0)
        for layer in (*module.convolutions, module.projection):
            weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
            tokens, grid = SoftSplit(3)(image)
            tokens = tokens @ weight.flatten(1).T + bias
            image = tokens.mT.unflatten(2, grid)
        got, got_grid = module(pictures(config))
        assert got_grid == grid
        torch.testing.assert_close(got, tokens, rtol=0, atol=1e-5)


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

    def test_in_bf16_is_near_the_answer_in_fp32(self):
        config = tiny_config("t2t")
        module = tiny_model(config).tokenizer
        expected, _ = module(pictures(config))
        with torch.autocast("cpu", torch.bfloat16):
            got, _ = module(pictures(config))
        assert got.dtype == torch.bfloat16
        assert (got - expected).norm() < 0.02 * expected.norm()


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
