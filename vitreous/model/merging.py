"""Token merging: in each block the picture's most similar tokens become one (Token Merging, 2210.09461)."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vitreous.model.config import ModelConfig
from vitreous.model.kernels import full_precision


class Pairs(NamedTuple):
    """Which of a block's T tokens stay, and which r of each picture go, merging into one of those."""

    stay: Tensor  # (B, T - r) numbers of tokens
    go: Tensor  # (B, r) numbers of tokens
    into: Tensor  # (B, r) places in `stay`

    def sums(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T - r, D), what goes added to what stays."""
        return add(take(x, self.stay), self.into, take(x, self.go))

    def moved(self) -> Tensor:
        """(B, T) places in `stay` of all tokens: their own, or of the one that they merge into."""
        tokens = torch.cat((self.stay, self.go), 1)
        places = torch.arange(self.stay.shape[1], device=tokens.device).expand_as(self.stay)
        return tokens.scatter(1, tokens, torch.cat((places, self.into), 1))


class Merging:
    """The merging of one forward pass, from block to block.

    Attention shows the keys of its tokens to `match`; between attention and MLP `merge` makes the tokens fewer. A token
    is the mean of those that merged into it, weighted by their sizes: how many tokens of the picture each stands for.
    """

    def __init__(self, config: ModelConfig):
        self.most, self.prefix, self.placed = config.merge, config.prefix, config.placed_in_blocks
        self.pairs: Pairs | None = None
        self.sizes: Tensor | None = None  # (B, T, 1); None while none has merged
        self.owners: Tensor | None = None  # (B, tokens at first): which token stands for each now, where that is asked

    def bias(self) -> Tensor | None:
        """(B, 1, 1, T), added to the scores of attention: see `log_sizes`."""
        return None if self.sizes is None else log_sizes(self.sizes)

    def match(self, keys: Tensor) -> None:
        """Chooses the pairs of a block by its keys (B, heads, T, D/heads)."""
        self.pairs = match(keys, self.most, self.prefix)

    def merge(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, T - r, D), the pairs that were chosen merged."""
        if self.pairs is None:
            return tokens
        sizes = torch.ones_like(tokens[..., :1], dtype=torch.float32) if self.sizes is None else self.sizes
        self.sizes = self.pairs.sums(sizes)
        if self.placed:
            moved = self.pairs.moved()
            self.owners = moved if self.owners is None else moved.gather(1, self.owners)
        return (self.pairs.sums(tokens * sizes) / self.sizes).to(tokens.dtype)

    def spread(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> all tokens of the picture again, copies of those that stand for them, to be placed."""
        return tokens if self.owners is None else take(tokens, self.owners)

    def gather(self, tokens: Tensor) -> Tensor:
        """What `spread` gave, placed -> (B, T, D), the mean of those that a token stands for."""
        if self.owners is None or self.sizes is None:
            return tokens
        total = add(tokens.new_zeros(*self.sizes.shape[:2], tokens.shape[2]), self.owners, tokens)
        return (total / self.sizes).to(tokens.dtype)


def log_sizes(sizes: Tensor) -> Tensor:
    """(B, T, 1) -> (B, 1, 1, T), by which attention counts a token once for each that it stands for (eq. 1)."""
    return sizes.log().mT[:, None]


def most_pairs(tokens: int, most: int) -> int:
    """How many of a picture's tokens a block may merge away: at most half of them."""
    return min(most, tokens // 2)


def tokens_left(config: ModelConfig, height: int, width: int) -> int:
    """How many of a picture's tokens, those of the prefix aside, leave the last block."""
    left = math.prod(config.grid(height, width))
    for _ in range(config.depth):
        left -= most_pairs(left, config.merge)
    return left


def match(keys: Tensor, most: int, prefix: int) -> Pairs | None:
    """The pairs of a block by its keys (B, heads, T, D/heads), T = prefix + N; None where there is but one token.

    The picture's tokens are split in turns. Each of the first set finds the most similar of the second, by the cosine
    of the keys' means over the heads (section 3). The `most` most similar merge into what they found, at most half of
    the N tokens. Prefix tokens stay as they are. No gradient passes through the choice.
    """
    T = keys.shape[2]
    first, second = slice(prefix, T, 2), slice(prefix + 1, T, 2)
    count = most_pairs(T - prefix, most)
    if not count:
        return None
    with full_precision(keys):
        means = F.normalize(keys.detach().mean(1, dtype=torch.float32), dim=-1)  # (B, T, D/heads)
        similarity, found = (means[:, first] @ means[:, second].mT).max(-1)  # (B, tokens of the first set)
    order = similarity.sort(descending=True).indices
    go, rest = order[:, :count], order[:, count:]
    places = torch.arange(T, device=keys.device)
    others = torch.cat((places[:prefix], places[second])).expand(keys.shape[0], -1)
    return Pairs(torch.cat((others, prefix + 2 * rest), 1), prefix + 2 * go, prefix + found.gather(1, go))


def take(tokens: Tensor, numbers: Tensor) -> Tensor:
    """(B, T, D), (B, n) -> (B, n, D), the tokens of these numbers."""
    return tokens.flatten(0, 1).index_select(0, rows(numbers, tokens)).unflatten(0, numbers.shape)


def add(tokens: Tensor, numbers: Tensor, added: Tensor) -> Tensor:
    """(B, T, D), (B, n), (B, n, D) -> (B, T, D), with what is added to the tokens of these numbers."""
    B, T, D = tokens.shape
    index = rows(numbers, tokens)[:, None].expand(-1, D)
    return tokens.flatten(0, 1).scatter_add(0, index, added.flatten(0, 1)).unflatten(0, (B, T))


def rows(numbers: Tensor, tokens: Tensor) -> Tensor:
    """(B, n) numbers of tokens (B, T, D) -> (B · n,) rows of the batch, which are copied and added whole, thus fast."""
    B, T, _ = tokens.shape
    return (torch.arange(B, device=tokens.device)[:, None] * T + numbers).flatten()
