"""The command line: one list of verbs. Nothing heavy is imported until a verb runs."""

import difflib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from vitreous.errors import ElsewhereError, InputError, StartError, ToldInterrupt, said_of, visible


@dataclass(frozen=True)
class Verb:
    """A word of the command line, what it takes, and what it does. The function is its namesake in `verbs`."""

    name: str
    takes: str
    does: str


VERBS = (
    Verb("check", "DATA", "find bad files, duplicates, leaks and imbalance before training does"),
    Verb("train", "DATA", "train a Vision Transformer on your pictures; --resume RUN goes on with one"),
    Verb("eval", "RUN DATA", "measure a trained model"),
    Verb("predict", "RUN PICTURES…", "ask a trained model about pictures or folders of them"),
    Verb("explain", "RUN PICTURES…", "show how a model came to its answers, and how far to believe it"),
    Verb("report", "RUN [DATA]", "show a whole run in one page: curves, classes, calibration, mistakes"),
    Verb("export", "RUN", "write a trained model to one file, for ONNX Runtime or OpenVINO, and prove that it agrees"),
    Verb("serve", "RUN", "answer over HTTP, with a page to drop pictures on"),
    Verb("import", "CHECKPOINT --out RUN", "make a run directory of another project's weights"),
    Verb("pack", "DATA OUT", "pack pictures and targets to shards: WebDataset's tars, or Parquet"),
    Verb("models", "", "list the models, with parameters, work and tokens"),
)
DATA = """\
DATA is a folder of class folders (with train/, validation/ and test/ above them, or not), a table (.csv, .tsv,
.parquet) with a column of paths and columns to learn, arrays (.npz), a .tar of class folders, or the word digits;
shards, WebDataset's .tar or .parquet with the pictures in it: a folder of them, a pattern such as
"train-{000..099}.tar" or "data/*.parquet", or their URL (https://, s3:// …); or hf://owner/name, of Hugging Face."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb; returns the exit code: 0, 1 where what was checked has errors, 2 for input that does not fit, 130
    after Ctrl-C. A SIGTERM leaves by `SystemExit`, with 143. `serve` ends with 0 after either.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0 if words else 2
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"vitreous {version('vitreous')}")
        return 0
    if words[0] not in [verb.name for verb in VERBS]:
        known = [verb.name for verb in VERBS]
        near = difflib.get_close_matches(words[0], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
        print(f"vitreous: there is no verb {words[0]!r}: {hint}", file=sys.stderr)
        return 2
    return _run(words[0], words[1:])


def entry() -> None:
    """The command: runs a verb and leaves with its exit code; after an interruption soon, whatever threads still do."""
    import signal

    from vitreous.leaving import leave, told, watch

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    watch()
    try:
        code = main()
    except SystemExit as end:  # of tyro's help, or of a SIGTERM
        code = end.code
    except KeyboardInterrupt:  # a second one, while the first was told
        code = 130
    if isinstance(code, int) and (told() or code > 128):
        leave(code)
    if signal.getsignal(signal.SIGTERM) is _end:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # all is tidied up
    sys.exit(code)


def _end(number: int, frame: object) -> None:
    """Ends as Ctrl-C does, so that what was begun is tidied up. A SIGTERM after that changes nothing."""
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def help_text() -> str:
    """What `vitreous --help` prints."""
    calls = {verb: f"vitreous {verb.name} {verb.takes}".strip() for verb in VERBS}
    width = max(map(len, calls.values())) + 2
    lines = [f"  {calls[verb]:<{width}}{verb.does}" for verb in VERBS]
    return "\n".join(
        [
            "Train a Vision Transformer on your own pictures, and ask it questions.",
            "",
            *lines,
            "",
            DATA,
            "",
            "vitreous VERB --help lists a verb's options; every verb takes --json for machines.",
        ]
    )


def _run(name: str, words: list[str]) -> int:
    # Threads that wait actively for long make a busy machine many times slower; must be said before torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    verbs = None
    try:
        from vitreous import verbs

        return verbs.run(name, words)
    except ElsewhereError:  # of the processes of torchrun the one that failed first says why
        return 2
    except (InputError, StartError) as fault:
        print(visible(f"vitreous {name}: {fault}"), file=sys.stderr)
    except OSError as fault:  # a full disk, a folder that may not be written
        if isinstance(fault, BrokenPipeError):  # `vitreous predict … | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        print(visible(f"vitreous {name}: {said_of(fault)}"), file=sys.stderr)
    except KeyboardInterrupt as end:
        if verbs is None or (verbs.speaks() and not isinstance(end, ToldInterrupt)):
            print(f"\nvitreous {name}: interrupted", file=sys.stderr)
        return 130
    return 2


if __name__ == "__main__":
    entry()
