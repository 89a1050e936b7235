"""What a model is, as data: `ModelConfig` holds all that is needed to build it again."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Self

from vitreous.errors import InputError
from vitreous.fields import read_fields

CHOICES = {
    "tokenizer": ("patch", "t2t", "stem"),
    "token_kind": ("transformer", "performer", "convolution"),
    "token_scale": ("input", "head"),
    "attention_scale": ("head", "width"),
    "norm": ("layer", "rms"),
    "mlp": ("gelu", "swiglu"),
    "position": ("sincos2d", "sinusoid", "learned", "learned2d", "relative", "rope2d", "none"),
    "position_at": ("input", "every", "shared"),
    "pool": ("mean", "class", "attention"),
    "ablation": ("", "se", "ghost", "dense"),
}
# The most of each that a model is built with: what is beyond is a mistake, or meant to exhaust a machine.
MOST = {
    "image_size": 32_768,
    "patch_size": 4_096,
    "channels": 4_096,
    "outputs": 1_000_000,
    "kernels": 255,
    "stem": 8_192,
    "width": 32_768,
    "depth": 512,
    "heads": 1_024,
    "mlp_ratio": 64,
    "token_width": 8_192,
    "token_heads": 1_024,
    "token_mlp_ratio": 64,
    "registers": 4_096,
    "head_hidden": 65_536,
    "merge": 1 << 20,
}
MOST_TOKENS, MOST_STEPS = 1 << 20, 8  # tokens of a picture; soft splits or convolutions one after the other
# What the blocks of `ablations.py` do not have.
PLAIN_BLOCKS = (
    "attention_scale",
    "qk_norm",
    "value_skip",
    "mlp",
    "norm",
    "layer_scale",
    "drop_path",
    "merge",
    "conditional",
)


@dataclass(frozen=True)
class ModelConfig:
    """A Vision Transformer: tokenizer, position embedding, encoder and head. Sizes are (height, width) in pixels.

    Raises `InputError` that lists every value that does not fit.
    """

    image_size: tuple[int, int] = (224, 224)  # the size it is made for; other grids work too
    channels: int = 3
    outputs: int = 1000  # classes, labels, or numbers

    tokenizer: str = "patch"  # "patch", "t2t" for tokens-to-token, or "stem": convolutions
    patch_size: tuple[int, int] = (16, 16)  # of the patch embedding
    kernels: tuple[int, ...] = (7, 3, 3)  # of the soft splits; stride and padding follow from each
    token_kind: str = "transformer"  # what works on the tokens between soft splits; also performer, convolution
    token_width: int = 64  # of the token transformers
    token_heads: int = 1
    token_mlp_ratio: float = 1.0
    token_scale: str = "input"  # softmax scale of the token transformers: input width or head width, to the -1/2

    stem: tuple[int, ...] = (24, 64, 128)  # channels of the stem's first convolution, and of each step that halves
    stem_stride: int = 1  # of its first convolution

    width: int = 384  # D
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    attention_scale: str = "head"  # softmax scale: head width or width, to the -1/2
    qk_norm: bool = False  # queries and keys are normalised, each head on its own
    value_skip: bool = False  # attention returns V + proj(A·V) in the encoder too, as the article series has it
    mlp: str = "gelu"  # or the gated swiglu
    norm: str = "layer"  # LayerNorm, or rms for RMSNorm
    norm_eps: float = 1e-6
    layer_scale: float = 0.0  # start of a learned factor a column on each branch; 0: none
    ablation: str = ""  # other blocks in the encoder, of `ablations.py`: se, ghost or dense
    drop_path: float = 0.0  # stochastic depth: the share of pictures that skip the last block's branches, in training
    merge: int = 0  # of the picture's tokens, so many merge into similar ones in each block (2210.09461)

    registers: int = 0  # learned tokens that carry no answer (2309.16588)
    distillation: bool = False  # a distillation token beside the class token, with a head of its own (2012.12877)
    position: str = "sincos2d"
    position_at: str = "input"  # or every block with tables of its own, or shared: every block with the same
    position_temperature: float = 10.0  # of sincos2d and rope2d: their longest wave is 2π times so many tokens
    conditional: bool = False  # before each block a depthwise convolution tells a token its neighbours (2102.10882)
    class_position: bool = False  # the class token has a position of its own: the embedding is added after it joins
    pool: str = "mean"  # what the head reads: the mean of the tokens, the class token, or what attention pools
    norm_after_pool: bool = False  # the last norm comes after pooling rather than before
    head_hidden: int = 0  # width of the head's hidden layer (tanh); 0: the head is linear

    def __post_init__(self):
        self._check()

    @property
    def class_token(self) -> bool:
        """Whether a class token joins the tokens."""
        return self.pool == "class"

    @property
    def prefix(self) -> int:
        """Tokens before those of the picture: class token, distillation token, registers."""
        return self.class_token + self.distillation + self.registers

    @property
    def positioned_prefix(self) -> int:
        """How many of them have a position of their own."""
        return (self.class_token + self.distillation) * self.class_position

    @property
    def stride(self) -> tuple[int, int]:
        """Pixels from one token to the next, (height, width): sizes that are multiples of it waste nothing."""
        if self.tokenizer == "patch":
            return self.patch_size
        if self.tokenizer == "stem":
            return (self.stem_stride * 2 ** (len(self.stem) - 1),) * 2
        total = math.prod(split_stride(kernel) for kernel in self.kernels)
        return total, total

    @property
    def placed_in_blocks(self) -> bool:
        """Whether something is added to the tokens of every block to tell them their places."""
        return self.conditional or (self.position != "none" and self.position_at != "input")

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The token grid (gh, gw) of a picture. Raises `InputError` where there is none, with the sizes that work."""
        if self.tokenizer == "t2t":
            gh, gw = height, width
            for kernel in self.kernels:
                gh, gw = split_length(gh, kernel), split_length(gw, kernel)
            if min(gh, gw) < 1:
                least = 1
                for kernel in reversed(self.kernels):
                    least = max(1, (least - 1) * split_stride(kernel) + kernel - 2 * split_padding(kernel))
                raise InputError(
                    f"a picture of {height}×{width} is too small for soft splits with kernels "
                    f"{self.kernels}: expected at least {least}×{least}"
                )
            return gh, gw
        ph, pw = self.stride
        if height % ph or width % pw or not height or not width:
            raise InputError(
                f"a picture of {height}×{width} does not divide into tokens of {ph}×{pw} pixels: "
                f"{_multiples('height', height, ph)}, {_multiples('width', width, pw)}"
            )
        return height // ph, width // pw

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a JSON file."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The config that `to_json` wrote. Raises `InputError` for fields that it does not know, or of other types."""
        return read_fields(cls, values, "a model config that cannot be read")

    def _check(self):
        faults: list[str] = []
        wrong: set[str] = set()  # fields that no further check can use

        def expect(holds: bool, fault: str, *fields: str):
            if not holds:
                faults.append(fault)
                wrong.update(fields)

        def sound(*fields: str) -> bool:
            return wrong.isdisjoint(fields)

        for field in dataclasses.fields(self):
            value, usual = getattr(self, field.name), field.default
            number = type(value) in (int, float) and abs(value) < 1e300
            expect(type(usual) is not float or number, f"{field.name} is {value!r}: expected a number", field.name)
            expect(type(usual) is not bool or type(value) is bool, f"{field.name} is {value!r}: expected true or false")
        for name in ("image_size", "patch_size", "kernels", "stem"):
            value = getattr(self, name)
            few = not isinstance(value, tuple) or len(value) <= MOST_STEPS
            expect(few, f"{name} is of many numbers: expected at most {MOST_STEPS}", name)
        if wrong:  # that the rest cannot be compared with
            raise InputError.listing("this model cannot be built:", faults)
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            expect(value in choices, f"{name} is {value!r}: expected one of {', '.join(choices)}", name)
        for name in ("image_size", "patch_size"):
            value = getattr(self, name)
            pair = isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, int) and v > 0 for v in value)
            expect(pair, f"{name} is {value!r}: expected (height, width), two whole numbers above 0", name)
        for name in ("channels", "outputs", "token_width", "token_heads", "width", "depth", "heads"):
            value = getattr(self, name)
            expect(isinstance(value, int) and value > 0, f"{name} is {value!r}: expected a whole number above 0", name)
        for name, of in (("kernels", "soft split"), ("stem", "convolution")):
            value = getattr(self, name)
            several = isinstance(value, tuple) and value != () and all(isinstance(v, int) and v > 0 for v in value)
            expect(several, f"{name} is {value!r}: expected whole numbers above 0, one a {of}", name)
        expect(
            self.stem_stride in (1, 2, 4, 8),
            f"stem_stride is {self.stem_stride!r}: expected 1, 2, 4 or 8",
            "stem_stride",
        )
        for name, most in MOST.items():
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value,)
            within = not sound(name) or all(number <= most for number in numbers if isinstance(number, int | float))
            expect(within, f"{name} is {value!r}: expected at most {most:,}", name)
        if sound("width", "heads"):
            expect(self.width % self.heads == 0, f"width {self.width} does not divide by {self.heads} heads")
        if sound("token_width", "token_heads"):
            expect(
                self.token_width % self.token_heads == 0,
                f"token_width {self.token_width} does not divide by {self.token_heads} token_heads",
            )
        expect(self.position_temperature > 1, "position_temperature: expected a number above 1")
        parts = {"sincos2d": 4, "sinusoid": 2, "learned2d": 2}.get(self.position, 1)
        if sound("width"):
            expect(self.width % parts == 0, f"width {self.width} does not divide by {parts}, as {self.position} needs")
        if sound("width", "heads") and self.position == "rope2d":
            expect(self.width // self.heads % 4 == 0, "the head width does not divide by 4, as rope2d needs")
        expect(isinstance(self.merge, int) and self.merge >= 0, f"merge is {self.merge!r}: expected 0 or more", "merge")
        if sound("merge") and self.merge:
            expect(
                self.position not in ("relative", "rope2d"),
                f"merge is {self.merge}: {self.position} positions work inside attention, where merged tokens "
                "have no place; expected merge 0, or another position",
            )
        if self.position == "relative":
            expect(
                self.position_at != "input",
                "relative positions work inside attention: expected position_at shared or every",
            )
        if sound("pool"):
            no_token = self.class_position and not self.class_token
            expect(not no_token, "class_position without a class token: expected pool class")
            expect(self.class_token or not self.distillation, "distillation without a class token: expected pool class")
        if self.ablation:
            fixed = {f.name: f.default for f in dataclasses.fields(self) if f.name in PLAIN_BLOCKS}
            changed = [name for name, usual in fixed.items() if getattr(self, name) != usual]
            expect(not changed, f"the {self.ablation} blocks know no {', '.join(changed)}: leave them as they are")
            expect(self.position not in ("relative", "rope2d"), f"the {self.ablation} blocks know no {self.position}")
        expect(isinstance(self.registers, int) and self.registers >= 0, "registers: expected 0 or more")
        expect(0 <= self.drop_path < 1, f"drop_path is {self.drop_path}: expected 0 to below 1")
        expect(self.layer_scale >= 0, f"layer_scale is {self.layer_scale}: expected 0 or more")
        if self.token_kind == "performer":
            expect(self.token_heads == 1, "the token performer has one head: expected token_heads 1")
        expect(
            type(self.head_hidden) is int and self.head_hidden >= 0,
            f"head_hidden is {self.head_hidden}: expected 0 or more",
        )
        expect(self.mlp_ratio > 0 and self.token_mlp_ratio > 0, "mlp_ratio: expected a number above 0")
        if sound("tokenizer", "image_size", "patch_size", "kernels", "stem", "stem_stride"):
            try:
                tokens = math.prod(self.grid(*self.image_size))
                expect(tokens <= MOST_TOKENS, f"{tokens:,} tokens a picture: expected at most {MOST_TOKENS:,}")
            except InputError as fault:
                faults.append(str(fault))
        if faults:
            raise InputError.listing("this model cannot be built:", faults)


def split_stride(kernel: int) -> int:
    """Stride of a soft split, ⌊(k+1)/2⌋: 4 for a kernel of 7, 2 for 3, as in the T2T-ViT paper (2101.11986)."""
    return (kernel + 1) // 2


def split_padding(kernel: int) -> int:
    """Padding of a soft split, ⌊(k+1)/4⌋: 2 for a kernel of 7, 1 for 3, as in the T2T-ViT paper (2101.11986)."""
    return (kernel + 1) // 4


def split_length(length: int, kernel: int) -> int:
    """Tokens along a side of `length` after a soft split: ⌊(n + 2p − k)/s⌋ + 1."""
    return (length + 2 * split_padding(kernel) - kernel) // split_stride(kernel) + 1


def _multiples(side: str, length: int, step: int) -> str:
    if length % step == 0 and length:
        return f"{side} {length} is fine"
    below, above = length // step * step, (length // step + 1) * step
    return f"{side} {below} or {above} would" if below else f"{side} {above} would"
