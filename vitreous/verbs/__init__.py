"""The verbs of the command line. Each puts the layers below together, and says what came of it."""

import functools
import textwrap
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Annotated, Any

import tyro
from tyro.conf import DisallowNone, FlagCreatePairsOff, OmitArgPrefixes, arg

from vitreous.errors import InputError, counted
from vitreous.training.torchrun import joined
from vitreous.verbs import answers, data, deploy, models, pages, train
from vitreous.verbs.options import MINUTES
from vitreous.verbs.output import speaks

DIVISIBLE = ("train", "eval", "predict")  # verbs whose work the processes of torchrun share
WITH_DATA = ("check", "train", "eval", "report", "pack")
FUNCTIONS = {
    "check": data.check,
    "train": train.train,
    "eval": answers.evaluate,
    "predict": answers.predict,
    "explain": pages.explain,
    "report": pages.report,
    "export": deploy.export_run,
    "serve": deploy.serve,
    "import": models.import_checkpoint,
    "pack": data.pack_data,
    "models": models.models,
}
READ = {"minutes": (MINUTES,)}  # options that are read in another way than their types tell
CODES = "Exit codes: 0 where all went well; {}2 for input that does not fit; {}."
ONE = {"check": "1 where training would be wrong; ", "train": "1 where --verify-resume does not hold; "}
SIGNALLED = {"serve": "130 where it is told to end before it is ready"}
SIGNALLED_ELSE = "130 after Ctrl-C, 143 after SIGTERM"
CTRL_C = {
    "train": "Ctrl-C and SIGTERM save what was trained and leave, within 10 seconds; --resume RUN goes on. A second "
    "Ctrl-C leaves at once: what came after the last checkpoint is trained again.",
    "predict": "Ctrl-C leaves within 10 seconds, a second one at once; --skip-done goes on with the table.",
    "serve": "Ctrl-C and SIGTERM end it with 0, once what it has taken is answered; a second Ctrl-C ends it at once.",
}
CTRL_C_ELSE = "Ctrl-C leaves within 10 seconds, a second one at once."
WIDTH = 80  # of the help


def run(name: str, words: list[str]) -> int:
    """Parses the words of a verb and runs it; returns the exit code."""
    config = (OmitArgPrefixes, FlagCreatePairsOff, DisallowNone)
    with joined() as world:
        if world.size > 1 and name not in DIVISIBLE:
            raise InputError(f"this is the work of one process: torchrun is for {', '.join(DIVISIBLE)}")
        function = FUNCTIONS[name]
        describe(function)
        parse: Any = functools.partial(
            tyro.cli, later(function), args=words, prog=f"vitreous {name}", config=config, console_outputs=speaks()
        )
        try:
            call, more = parse(return_unknown_args=True)
            if more:
                refuse_many(name, more)
                parse()  # says what is wrong, and ends
        except SystemExit:
            if {"-h", "--help"} & set(words) and speaks():
                print(ending(name))
            raise
        return call()


def later(function: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """A function with the same options, which gives what is to be called once they are parsed."""
    return functools.wraps(function)(lambda *given, **options: functools.partial(function, *given, **options))


@functools.cache
def describe(options: Any) -> None:
    """Says of a function's options, and of those of its dataclasses, how some are read, and lets the help name no
    default that tells nothing.
    """
    kinds = options.__annotations__
    for name, kind in kinds.items():
        if is_dataclass(kind):
            describe(kind)
        elif name != "return":
            kinds[name] = Annotated[kind, arg(help_behavior_hint=default_hint), *READ.get(name, ())]


def default_hint(default: str) -> str:
    """What the help of an option says of its default."""
    return f"(default: {default})" if default not in ("None", "False", "") else ""


def ending(name: str) -> str:
    """The last lines of a verb's help: exit codes, and what Ctrl-C does."""
    lines = (CODES.format(ONE.get(name, ""), SIGNALLED.get(name, SIGNALLED_ELSE)), CTRL_C.get(name, CTRL_C_ELSE))
    return "\n".join(textwrap.fill(line, WIDTH) for line in lines)


def refuse_many(name: str, more: list[str]) -> None:
    """Raises `InputError` where the words that are too many may come of a pattern that the shell spelt out."""
    if name in WITH_DATA and not any(word.startswith("-") for word in more):
        some = " ".join(more[:3]) + (" …" if len(more) > 3 else "")
        raise InputError(
            f"{counted(len(more), 'word')} too many: {some}\nExpected one DATA. A pattern of shards stands in quotes, "
            'or the shell makes many words of it: "train-{000..099}.tar"'
        )
