"""The verbs of the command line. Each puts the layers below together, and says what came of it."""

import tyro
from tyro.conf import DisallowNone, FlagCreatePairsOff, OmitArgPrefixes

from vitreous.errors import InputError
from vitreous.training.torchrun import joined
from vitreous.verbs import answers, data, deploy, models, pages, train
from vitreous.verbs.output import speaks

DIVISIBLE = ("train", "eval", "predict")  # verbs whose work the processes of torchrun share
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


def run(name: str, words: list[str]) -> int:
    """Parses the words of a verb and runs it; returns the exit code."""
    config = (OmitArgPrefixes, FlagCreatePairsOff, DisallowNone)
    with joined() as world:
        if world.size > 1 and name not in DIVISIBLE:
            raise InputError(f"this is the work of one process: torchrun is for {', '.join(DIVISIBLE)}")
        return tyro.cli(FUNCTIONS[name], args=words, prog=f"vitreous {name}", config=config, console_outputs=speaks())
