"""TrainConfig: what the user may choose, and what is chosen where that is left open."""

import dataclasses
import difflib
import math
import os
import re
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch

from vitreous.data.augment import AugmentConfig, resolve
from vitreous.data.decode import MAX_PIXELS
from vitreous.data.preprocess import parse_size
from vitreous.data.tables import Columns
from vitreous.errors import InputError
from vitreous.fields import broken_rules, read_fields
from vitreous.model.config import ModelConfig
from vitreous.model.presets import PRESETS, name_of, preset
from vitreous.model.vit import count_macs

VALIDATION, MOST_VALIDATION = 0.15, 2_500  # share of the training pictures that is held out, and pictures at most
SIZES = ("xs", "s")  # of the recipes' models that are chosen, as their names have them
ENOUGH_PASSES = 40  # over the pictures, for a larger model to be worth its time; 16 and 18 were not enough
SECONDS = {  # of the units that times are written in
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hour", "hours"), 3600),
}
STEM_RATE = (
    4.0  # of the stem's later convolutions, as a share of Muon's: each has a norm behind it, which frees its size
)
REST_RATE = 0.2  # of AdamW beside Muon, as a share of Muon's
DEFAULT_MINUTES = 10.0  # where neither epochs nor minutes are given


@dataclass(frozen=True)
class Recipe:
    """What becomes of the options that are left at auto."""

    family: str  # of models, as `vitreous models` lists them: its name begins so, then comes a size and a patch
    optimizer: str
    schedule: str
    coarse: float


RECIPES = {
    "auto": Recipe("vit_c", "muon", "linear", coarse=0.5),
    "patches": Recipe("vit", "muon", "linear", coarse=0.0),
    "t2t": Recipe("t2t_vit", "muon", "linear", coarse=0.0),
    "paper": Recipe("vit", "adamw", "cosine", coarse=0.0),
}


@dataclass(frozen=True)
class TrainConfig:
    """The options of `train`. What is left out, or auto, is chosen from the data, and written to the plan."""

    # What becomes of all that is left at auto: auto (a ViT with a convolutional stem, Muon: the best for small data),
    # patches (plain ones, with Muon), t2t (tokens-to-token, with Muon), paper (patches, AdamW and a cosine)
    recipe: Literal["auto", "patches", "t2t", "paper"] = "auto"
    # A name that `vitreous models` lists. auto: a small one of the recipe, with tokens that suit the pictures; a larger
    # one where --minutes leave time for it
    model: str = "auto"
    # 224: about the area of 224², in each picture's own shape. 160x384: exactly that height and width. auto: the
    # pictures' own size up to 64, else 160
    size: str = "auto"
    # Passes over the training pictures
    epochs: int | None = None
    # Wall-clock budget, in minutes (10) or with a unit (90s, 8h); it begins when the pictures are decoded. Default: 10,
    # where --epochs is not given. The steps are planned by timing the first ones, and again now and then
    minutes: float | None = None
    # Every random choice follows from it
    seed: int = 0

    # What is learned. auto: classes from folders and text; from numbers what they look like
    task: Literal["auto", "classification", "multilabel", "regression"] = "auto"
    # Target columns of a table; default: all that look like targets
    target: tuple[str, ...] = ()
    # Column of a table that holds the pictures' paths
    path_column: str | None = None
    # Column whose equal values (a patient, an object, a video) never stand on both sides of the split
    group: str | None = None
    # Share of the training pictures held out, where the data brings no validation split; default: 0.15, at most 2,500
    # pictures
    validation: float | None = None
    # Leave out pictures that cannot be read, by name, rather than stop
    skip_bad: bool = False
    # Convert all pictures to so many channels (1: grey), even where something is lost
    channels: int | None = None
    # Convert all pictures to this depth, even where something is lost
    depth: Literal["uint8", "uint16"] | None = None
    # Larger pictures are refused before they are decoded
    max_pixels: int = MAX_PIXELS
    # Where pixels are kept once they are decoded: auto (the user's cache folder), off, or a folder
    cache: str = "auto"

    # Start from a run directory or another project's checkpoint, with its model; a head of other outputs starts anew
    init: str | None = None
    # What of it learns nothing: tokenizer, or encoder (all but the head: a linear probe)
    freeze: Literal["none", "tokenizer", "encoder"] = "none"
    # Each block learns so many times slower than the one behind it; 0.75 is usual for fine-tuning
    layer_decay: float = 1.0
    # Pictures in an update; default: about a sixtieth of those to train on, from 16 to 128
    batch: int | None = None
    # Pieces that an update is computed in, to save memory
    accumulate: int = 1
    # adamw, or muon for the matrices between pixels and head and adamw for the rest. auto: the recipe's, adamw with
    # --init
    optimizer: Literal["auto", "muon", "adamw"] = "auto"
    # Largest learning rate; with muon that of the encoder's matrices: a convolutional stem learns up to four times
    # faster, the rest five times slower
    lr: float | None = None
    # Weight decay, on matrices alone
    weight_decay: float = 0.05
    # Share of the steps in which the learning rate rises
    warmup: float = 0.1
    # How it falls then, to 0: along a line or a cosine. auto: the recipe's, a cosine with --init
    schedule: Literal["auto", "linear", "cosine"] = "auto"
    # Share of the steps, from the first on, that see pictures at three quarters of their size, which is faster.
    # Default: 0.5 with the recipe auto; none with others, with few tokens or with --init
    coarse: float | None = None
    # Label smoothing, for classes
    smoothing: float = 0.1
    # Largest norm of the gradient; beyond it is scaled down
    clip: float = 1.0
    # Decay a step of the weights' moving average, which is what is saved. Default: it spans 2 % of the run
    ema: float | None = None
    # For unbalanced classes: weigh the loss, or draw rare classes more often
    balance: Literal["none", "weights", "sampling"] = "none"
    # How pictures are varied: auto (more, where each is seen often), none, slight, varied, light, medium or strong; the
    # options below change single parts of it
    augment: str = "auto"
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)

    # auto: bf16 where the hardware has it
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    # auto: a GPU where there is one
    device: str = "auto"
    # CPU threads of a process; default: OMP_NUM_THREADS, where that is set, else all cores, which the processes of
    # torchrun share
    threads: int | None = None
    # Threads that make batches ahead, 0: none; the result is the same. Default: 0 on a CPU, else 2
    workers: int | None = None
    # Between checkpoints: steps (500), or time beside those with every row of metrics (5min, 90s, 1h); default: with
    # every row
    save_every: str | None = None
    # Compile tokenizer and blocks with torch.compile, which takes about a minute of --minutes: not measured on a GPU
    # yet, and a CPU gains little
    compile: bool = False
    # Divide the model over the processes of torchrun, for one that does not fit (FSDP2); else each has it whole (DDP)
    shard: bool = False

    def check(self) -> None:
        """Raises `InputError` that lists every option out of its range."""
        rules = (
            ("seed", 0 <= self.seed < 2**63, "0 or more, below 2^63"),
            ("epochs", self.epochs is None or self.epochs >= 1, "1 or more"),
            ("minutes", self.minutes is None or 0 < self.minutes < math.inf, "a number above 0"),
            ("validation", self.validation is None or 0 < self.validation < 1, "a share between 0 and 1"),
            ("batch", self.batch is None or self.batch >= 1, "1 or more"),
            ("accumulate", self.accumulate >= 1, "1 or more"),
            ("lr", self.lr is None or self.lr > 0, "more than 0"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("layer_decay", 0 < self.layer_decay <= 1, "above 0, to 1"),
            ("warmup", 0 <= self.warmup < 1, "a share from 0 to below 1"),
            ("coarse", self.coarse is None or 0 <= self.coarse < 1, "a share from 0 to below 1"),
            ("smoothing", 0 <= self.smoothing < 1, "0 to below 1"),
            ("clip", self.clip > 0, "more than 0"),
            ("ema", self.ema is None or 0 <= self.ema < 1, "0 to below 1"),
            ("threads", self.threads is None or self.threads >= 1, "1 or more"),
            ("workers", self.workers is None or self.workers >= 0, "0 or more"),
            ("channels", self.channels is None or self.channels >= 1, "1 or more"),
        )
        faults = broken_rules(self, rules)
        if self.epochs is not None and self.minutes is not None:
            faults.append("epochs and minutes: expected one of the two")
        if self.init is not None and self.model != "auto":
            faults.append(f"model is {self.model}: --init brings its own model; leave --model out")
        if self.init is not None and self.recipe != "auto":
            faults.append(
                f"recipe is {self.recipe}: --init brings a model and trains it by the paper's; leave --recipe out"
            )
        if self.init is None and (self.freeze != "none" or self.layer_decay < 1):
            faults.append("freeze and layer_decay are for weights that were trained before: expected --init too")
        for check in (
            lambda: self.model == "auto" or preset(self.model),
            lambda: parse_size(self.size),
            lambda: parse_save_every(self.save_every),
            lambda: resolve(self.augmentation, self.augment, "classification", 3, "uint8", False),
        ):
            try:
                check()
            except InputError as fault:
                faults.append(str(fault))
        if faults:
            raise InputError.listing("these options do not fit:", faults)

    @property
    def columns(self) -> Columns:
        """The columns of a table that are meant."""
        return Columns(self.target, self.path_column, self.group)

    @classmethod
    def of(cls, **options: Any) -> Self:
        """A config from options by name; those of `AugmentConfig` may stand beside the others."""
        own = {f.name for f in dataclasses.fields(cls)}
        parts = {f.name for f in dataclasses.fields(AugmentConfig)}
        if unknown := sorted(set(options) - own - parts):
            near = difflib.get_close_matches(unknown[0], own | parts, n=2)
            raise InputError(
                f"train has no option {unknown[0]!r}" + (f": did you mean {' or '.join(near)}?" if near else "")
            )
        single = {name: options.pop(name) for name in sorted(set(options) & parts)}
        if single:
            base = options.get("augmentation", AugmentConfig())
            options["augmentation"] = dataclasses.replace(base, **single)
        if isinstance(options.get("target"), str):
            options["target"] = (options["target"],)
        if "size" in options:
            options["size"] = size_text(options["size"])
        if isinstance(options.get("minutes"), str):
            options["minutes"] = parse_minutes(options["minutes"])
        if isinstance(options.get("save_every"), int):
            options["save_every"] = str(options["save_every"])
        for name in ("init", "cache"):
            if isinstance(options.get(name), os.PathLike):
                options[name] = os.fspath(options[name])
        config = cls(**options)
        config.check()
        return config

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a JSON file."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The config that `to_json` wrote. Raises `InputError` for anything else."""
        if isinstance(values, dict) and type(values.get("save_every")) is int:  # as it was written once
            values = {**values, "save_every": str(values["save_every"])}
        return read_fields(cls, values, "training options that cannot be read")


def choose_model(config: TrainConfig, shapes: list[tuple[int, int]]) -> ModelConfig:
    """The model that was named, or for "auto" the small one of the recipe whose tokens suit the pictures: 16 to 100,
    or as near as its presets come.

    A size that is fixed must divide by what a token covers; the largest that does is taken.
    """
    if config.model != "auto":
        return preset(config.model)
    fixed = parse_size(config.size)[0]
    height, width = fixed or sorted(shapes, key=lambda s: s[0] * s[1])[len(shapes) // 2]
    side = math.sqrt(height * width)
    wanted = next((patch for largest, patch in ((6, 1), (12, 2), (40, 4), (64, 8)) if side <= largest), 16)
    while fixed and wanted > 1 and (height % wanted or width % wanted):
        wanted //= 2
    family = f"{RECIPES[config.recipe].family}_xs_"
    patches = sorted(int(name.removeprefix(family)) for name in PRESETS if name.startswith(family))
    return PRESETS[family + str(max((patch for patch in patches if patch <= wanted), default=patches[0]))]


def larger_model(model: ModelConfig, passes: float) -> ModelConfig:
    """The largest model of its family that, in the time in which this one would see each picture `passes` times, still
    sees it often enough; or this one. Larger ones learn more from a picture, and overtake it only then. None is larger
    than s: of those beyond, which can be named, nothing was measured.
    """
    if not (parts := re.fullmatch(rf"(.+)_({'|'.join(SIZES)})_(\d+)", name_of(model))):
        return model
    family, size, patch = parts.groups()
    work = count_macs(model, *model.image_size)
    for larger in SIZES[SIZES.index(size) + 1 :]:
        if (name := f"{family}_{larger}_{patch}") in PRESETS:
            config = preset(name, image_size=model.image_size, channels=model.channels, outputs=model.outputs)
            if passes * work / count_macs(config, *config.image_size) >= ENOUGH_PASSES:
                model = config
    return model


def parse_time(text: str) -> tuple[float, int]:
    """A number and the seconds of its unit: "1.5 h" is (1.5, 3600), "500", without one, (500.0, 0). What is neither is
    (0.0, 0).
    """
    found = re.fullmatch(rf"(\d+\.?\d*|\.\d+) *({'|'.join(SECONDS)}|)", text.strip().lower())
    return (float(found[1]), SECONDS.get(found[2], 0)) if found else (0.0, 0)


def parse_minutes(text: str) -> float:
    """Minutes, of a number of them or a time: "10" is 10.0, "90s" is 1.5, "8h" is 480.0.

    Raises `InputError` for what is neither.
    """
    number, unit = parse_time(text)
    if number:
        return number * unit / 60 if unit else number
    raise InputError(f"minutes is {text}: expected minutes, more than 0, as in 10, or a time, as in 90s, 10min or 8h")


def parse_save_every(text: str | None) -> tuple[int, float]:
    """Steps and seconds between checkpoints, 0 for none: "500" is (500, 0.0), "5min" is (0, 300.0).

    Raises `InputError` for what is neither.
    """
    if text is None:
        return 0, 0.0
    number, unit = parse_time(text)
    if number and unit:
        return 0, number * unit
    if number and number.is_integer():
        return int(number), 0.0
    raise InputError(f"save_every is {text}: expected steps, 1 or more, as in 500, or a time, as in 90s, 5min or 1h")


def choose_validation(pictures: int) -> float:
    """The share of the training pictures that is held out."""
    return min(VALIDATION, MOST_VALIDATION / max(pictures, 1))


def choose_batch(pictures: int) -> int:
    """Pictures in an update: about a sixtieth of the data, from 16 to 128, a power of two."""
    return int(min(128, max(16, 2 ** round(math.log2(max(pictures, 1) / 60)))))


def choose_rate(optimizer: str, width: int, batch: int) -> float:
    """The largest learning rate. Muon: 0.01 at any width, at 128 pictures. AdamW: 1e-3 at width 192 and 64 pictures,
    less for wider models. Both: less for smaller batches.
    """
    if optimizer == "muon":
        return 0.01 * math.sqrt(min(batch, 128) / 128)
    return 1e-3 * math.sqrt(192 / width) * math.sqrt(min(batch, 128) / 64)


def choose_device(device: str) -> torch.device:
    """The device that was asked for, or a GPU where there is one. Raises `InputError` for one that is not there."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as fault:
        raise InputError(
            f"--device {device}: not to be had here ({str(fault).splitlines()[0]}); expected cpu, cuda, mps or auto"
        ) from None


def choose_precision(precision: str, device: torch.device) -> str:
    """bf16 where the hardware computes in it, else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "fp32"


def choose_threads(threads: int | None) -> int:
    """The threads that were asked for, by the option or by OMP_NUM_THREADS, or those that suit the machine."""
    asked, processes = os.environ.get("OMP_NUM_THREADS", ""), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if threads:
        return threads
    if asked.isdecimal() and int(asked) and not (asked == "1" and processes > 1):  # torchrun says 1 where nobody does
        return int(asked)
    return machine_threads()


def machine_threads() -> int:
    """One thread a core that this process may use; of torchrun's, each has its share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def size_text(size: str | int | tuple[int, int]) -> str:
    """A size as the command line writes it: 224 -> "224", (160, 384) -> "160x384"."""
    return "x".join(map(str, size)) if isinstance(size, tuple | list) else str(size)
