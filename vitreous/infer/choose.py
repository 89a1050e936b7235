"""Which engine answers for a run: measured once on its own validation pictures, and remembered in its folder."""

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitreous.errors import InputError, first_line
from vitreous.fields import read_fields
from vitreous.files import write_atomically
from vitreous.infer.agreement import Agreement
from vitreous.infer.build import build, folder_of
from vitreous.infer.engines import Engine, candidates, describe
from vitreous.infer.judge import Judge, validation_judge
from vitreous.model.kernels import processor_name
from vitreous.model.vit import VisionTransformer
from vitreous.strict import read_json

if TYPE_CHECKING:
    from vitreous.infer.predictor import Predictor

MEMORY, MOST_MEMORY = "choices.json", 1 << 20  # and its bytes at most
TURNS = 2  # in which all engines take turns; the best of each counts, since what else the machine does only slows


@dataclass(frozen=True)
class _Choice:
    """What was chosen before: engine and precision, and what was said of it."""

    chosen: tuple[str, str]
    said: str


@dataclass(frozen=True)
class Trial:
    """An engine, how fast it is, and how far it agrees."""

    engine: Engine
    rate: float  # pictures a second
    agreement: Agreement

    def line(self) -> str:
        """In words."""
        return f"{describe(self.engine)}: {self.rate:,.0f} pictures/s; {self.agreement.line()}"


def remembers(predictor: "Predictor") -> bool:
    """Whether the engine of these options was chosen before."""
    return _key(predictor) in _remembered(folder_of(predictor) / MEMORY, _tried(predictor))


def choose_engine(predictor: "Predictor", say: Callable[[str], None]) -> Engine:
    """The engine that the options of a predictor ask for, and a word about it.

    Where a choice is left, the fastest that agrees within the bar. Raises `InputError` for what cannot be had.
    """
    options = predictor.options
    tried = _tried(predictor)
    late = partial(validation_judge, predictor, options.data)
    if len(tried) == 1 and tried[0][1] == "fp32" and not options.merge:
        return _first(predictor, tried, late, say)
    key, path = _key(predictor), folder_of(predictor) / MEMORY
    memory = _remembered(path, tried)
    if key in memory:
        with suppress(Exception):  # the engine's file is gone, and what it was made of too
            engine = build(predictor, *memory[key].chosen, late)
            say(f"engine: {memory[key].said}; as measured before")
            return engine
    try:
        judge = late()
    except InputError as fault:
        say(f"note: no pictures of the run to measure by ({fault})")
        return _unmeasured(predictor, tried, late, say)
    patience = ", in a minute or two" if any(precision == "int8" for _, precision in tried) else ""
    say(f"looking for the fastest engine, once for this run, by {len(judge.sample):,} validation pictures{patience}")
    best = _fastest(predictor, tried, judge, say)
    said = best.line()
    if options.merge:
        before = VisionTransformer(dataclasses.replace(predictor.model.config, merge=0))
        before.load_state_dict(predictor.model.state_dict())
        said += f"; merging {options.merge} tokens a block, beside none: {judge.cost_of(before.eval()).line()}"
    say(f"engine: {said}")
    chosen = {"chosen": [best.engine.name, best.engine.precision], "said": said}
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(_read(path) | {key: chosen}, indent=2, ensure_ascii=False) + "\n").encode())
    return best.engine


def _fastest(predictor: "Predictor", tried: list[tuple[str, str]], judge: Judge, say: Callable[[str], None]) -> Trial:
    """The fastest engine that agrees; one that was asked for by name and precision also where it does not.

    Of several, those that fail are passed over. Raises `InputError` where none is left.
    """
    alone, verdict = len(tried) == 1, "can be made"
    engines: dict[tuple[str, str], Engine] = {}
    rates: dict[tuple[str, str], list[float]] = defaultdict(list)
    for one in tried:
        if not alone:
            say(f"  {', '.join(one)} …")
        with _spared(one, alone, say):
            engines[one] = build(predictor, *one, lambda: judge)
    for one in tried * TURNS:
        if engine := engines.pop(one, None):
            with _spared(one, alone, say):
                rates[one].append(judge.rate(engine))
                engines[one] = engine
    for one in sorted(engines, key=lambda one: -max(rates[one])):
        with _spared(one, alone, say):
            trial = Trial(engines[one], max(rates[one]), judge.agreement(engines[one]))
            if trial.agreement.holds(predictor.options.bar):
                return trial
            if alone:
                say("note: beyond what a faster engine may cost; it was asked for")
                return trial
            say(f"  not taken: {trial.line()}")
            verdict = "agrees"
    raise _none_of(tried, verdict)


@contextmanager
def _spared(one: tuple[str, str], alone: bool, say: Callable[[str], None]) -> Iterator[None]:
    """What fails inside, and libraries raise what they like, is a word about one engine of several; of one `alone` it
    is an `InputError`.
    """
    try:
        yield
    except Exception as fault:
        if not alone:
            say(f"  {', '.join(one)}: {first_line(fault)}")
        elif isinstance(fault, InputError):
            raise
        else:
            raise InputError(f"{', '.join(one)}: {first_line(fault)}") from fault


def _none_of(tried: list[tuple[str, str]], verdict: str) -> InputError:
    return InputError(f"none of {', '.join(f'{name} in {kind}' for name, kind in tried)} {verdict}: try --engine torch")


def _first(
    predictor: "Predictor", tried: list[tuple[str, str]], judge: Callable[[], Judge], say: Callable[[str], None]
) -> Engine:
    """The first that can be made."""
    for one in tried:
        with _spared(one, len(tried) == 1, say):
            return build(predictor, *one, judge)
    raise _none_of(tried, "can be made")


def _unmeasured(
    predictor: "Predictor", tried: list[tuple[str, str]], judge: Callable[[], Judge], say: Callable[[str], None]
) -> Engine:
    """What can be had without pictures: of several the first in fp32."""
    engine = _first(predictor, [one for one in tried if one[1] == "fp32"] or tried, judge, say)
    say(f"engine: {describe(engine)}; not measured")
    return engine


def _key(predictor: "Predictor") -> str:
    """Of all that a choice depends on: the weights, what was asked for, the machine and the versions."""
    options = predictor.options
    asked = [options.engine, options.precision, options.merge, dataclasses.asdict(options.bar)]
    machine = [str(predictor.device), predictor.threads, processor_name()]
    versions = [_version(name) for name in ("openvino", "onnxruntime", "nncf")]
    text = json.dumps([predictor.identity, asked, machine, versions])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _tried(predictor: "Predictor") -> list[tuple[str, str]]:
    return candidates(predictor.device, predictor.options.engine, predictor.options.precision)


def _remembered(path: Path, tried: list[tuple[str, str]]) -> dict[str, _Choice]:
    """The choices among what may be tried; a run directory may be another's, and whatever else stands there is none."""
    known = {}
    for key, values in _read(path).items():
        with suppress(InputError):
            choice = read_fields(_Choice, values, key)
            known |= {key: choice} if choice.chosen in tried else {}
    return known


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, InputError):
        return read_json(path, MOST_MEMORY)
    return {}
