"""What the pages of the documentation show things with: figures in light and dark, animations, source code, commands.

from showing import QUICK, animate, colour, show, source    # for the tour
from showing import embed, run, run_once, scratch, serving    # for the how-tos
"""

import atexit
import base64
import hashlib
import html
import inspect
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import matplotlib
from cycler import cycler
from filelock import FileLock
from IPython.display import HTML, Markdown, display
from matplotlib.figure import Figure
from PIL import Image

from vitreous.cli import main
from vitreous.files import write_atomically
from vitreous.training.figures import STYLE

QUICK = os.environ.get("VITREOUS_DOCS_QUICK") == "1"  # small sizes: is everything there, and does it run?

COLOURS = {  # name: (light, dark); those of the project's own pages
    "paper": ("#fcfcfa", "#131518"),
    "raised": ("#ffffff", "#1b1e22"),
    "ink": ("#1b1e23", "#eceef0"),
    "muted": ("#5b636d", "#9da5af"),
    "line": ("#e4e4de", "#2b2f35"),
    "grey": ("#8b919a", "#6c747e"),
    "blue": ("#0068a6", "#5fb2e6"),
    "orange": ("#c45000", "#f08c42"),
    "green": ("#00795a", "#3fbf97"),
    "purple": ("#a24d82", "#dd93c0"),
}
Layout = Literal["constrained", "compressed", "tight"] | None
PATIENCE = 240  # seconds that a command may take
SERIES = ("blue", "orange", "green", "purple", "grey")
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
_theme = 0  # 0 while a figure is drawn for a light page, 1 for a dark one


def colour(name: str) -> str:
    """A colour of `COLOURS` as the page has it that is being drawn for; to be called inside a `draw`."""
    return COLOURS[name][_theme]


def show(
    draw: Callable[[Figure], Any], caption: str, size: tuple[float, float] = (8, 4), layout: Layout = "constrained"
) -> None:
    """Shows what `draw` draws on a matplotlib Figure of `size` inches, and a sentence under it that says what it is.

    `draw` is called for a light page and for a dark one: text, axes and lines are coloured already, `colour` gives
    others, and the ground is clear. A phone shows 7 inches half as large. `layout` is matplotlib's, None for axes that
    are placed by hand.
    """
    drawn = _drawn(lambda figure, _: draw(figure), [None], size, layout)
    images = [_image(_svg(figure), caption, theme, round(96 * size[0])) for theme, figure in drawn]
    _display(images, caption)


def animate(
    draw: Callable[[Figure, Any], Any],
    frames: int | Sequence[Any],
    caption: str,
    size: tuple[float, float] = (8, 4),
    rate: float = 8,
    layout: Layout = None,
) -> None:
    """As `show`, with a player: `draw(figure, frame)` draws each of the frames, of which `rate` pass in a second.

    Drawing takes a fifth of a second a frame and theme; the quick build leaves nine frames of ten out.
    """
    frames = list(range(frames) if isinstance(frames, int) else frames)[:: 10 if QUICK else 1]
    pictures: dict[str, list[str]] = {"light": [], "dark": []}
    for theme, figure in _drawn(draw, frames, size, layout):
        pictures[theme].append(_png(figure))
    images = [_image(pictures[theme][0], caption, theme, round(96 * size[0])) for theme in pictures]
    numbers = json.dumps({"rate": rate, "pictures": pictures})
    last = len(frames) - 1
    controls = (
        '<div class="controls"><button type="button">Play</button>'
        f'<input type="range" min="0" max="{last}" value="0" aria-label="frame"><output>1 / {last + 1}</output></div>'
        f"<script>({PLAYER})(document.currentScript.closest('figure'), {numbers})</script>"
    )
    _display(images, caption, controls)


PLAYER = """(figure, {rate, pictures}) => {
  const [button, slider, said] = figure.querySelectorAll("button, input, output");
  let timer = null;
  const go = (frame) => {
    slider.value = frame;
    for (const theme in pictures)
      figure.querySelector(".only-" + theme).src = pictures[theme][frame];
    said.value = `${frame + 1} / ${pictures.light.length}`;
  };
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "Play"; };
  const step = () => (+slider.value < +slider.max ? go(+slider.value + 1) : stop());
  button.onclick = () => {
    if (timer) return stop();
    if (slider.value === slider.max) go(0);
    timer = setInterval(step, 1000 / rate);
    button.textContent = "Pause";
  };
  slider.oninput = () => { stop(); go(+slider.value); };
  go(0);
}"""


def source(thing: Any, first: str | None = None, last: str | None = None) -> None:
    """Shows the source code of a class, function, method or module of the package.

    Of a part of it, from the first line that holds the words `first` up to the next that holds `last`.
    """
    lines, start = inspect.getsourcelines(thing)
    begin = _line(lines, first, 0) if first else 0
    end = _line(lines, last, begin) if last else len(lines) - 1
    code = textwrap.dedent("".join(lines[begin : end + 1])).rstrip()
    module = inspect.getmodule(thing)
    file = module.__name__.replace(".", "/") + ".py" if module else ""
    display(Markdown(f"`{file}`, from line {max(start, 1) + begin}:\n\n```python\n{code}\n```\n"))


def scratch() -> Path:
    """Makes an empty folder, in which the commands and the code of a page run from here on; it goes when they end."""
    folder = Path(tempfile.mkdtemp(prefix="vitreous-docs-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE"):  # a kernel sets them, which brings progress bars too
        os.environ.pop(name, None)
    os.environ["VITREOUS_CACHE"] = str(folder / ".cache" / "vitreous")
    os.chdir(folder)
    return folder


def run(command: str, code: int = 0, most: int = 30) -> None:
    """Runs a command in the folder of `scratch`, and shows it with what it said, of which `most` lines.

    `vitreous …` runs in this process, for speed; the quick build trains a tiny model for one epoch, on one thread.

    Raises:
        RuntimeError: it ended with another exit code than `code`.
    """
    _terminal(command, _said(command, code), most)


def run_once(command: str, most: int = 30) -> None:
    """As `run`, but once for all pages of a build, whose folders must hold the same before it: each gets what it made.

    That is copied from the folder in which it ran, which stays: a run knows where its pictures are.
    """
    if "VITREOUS_DOCS_MADE" not in os.environ:  # no build, but a notebook of its own
        run(command, most=most)
        return
    here, kept = Path.cwd(), Path(os.environ["VITREOUS_DOCS_MADE"], hashlib.sha256(command.encode()).hexdigest()[:12])
    told = kept.with_name(f"{kept.name}.txt")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{kept}.lock"):
        if not told.exists():
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(here, kept)
            with chdir(kept):
                said = _said(command)
            write_atomically(told, said.replace(f"{here}/", "~/").encode())  # where the cache is
    shutil.copytree(kept, here, dirs_exist_ok=True)
    _terminal(command, told.read_text("utf-8"), most)


@contextmanager
def serving(command: str) -> Iterator[None]:
    """Runs a command that serves, until the block ends; shows it with the line by which it said that it is ready."""
    words = [sys.executable, "-m", *shlex.split(command)]
    with (
        tempfile.NamedTemporaryFile("rb") as said,  # a pipe that nobody reads would stop it
        open(said.name, "wb") as told,
        subprocess.Popen(words, stdout=told, stderr=subprocess.STDOUT) as process,
    ):
        try:
            lines = [""]
            while not lines[-1].startswith("http"):
                if line := said.readline():
                    lines.append(line.decode())
                elif process.poll() is not None:
                    raise RuntimeError(f"{command}\nended, and said:\n{''.join(lines)}")
                else:
                    time.sleep(0.1)
            _terminal(command, _at_home("".join(lines)), 30)
            yield
        finally:
            process.terminate()


def embed(page: str | Path, caption: str, height: int = 900) -> None:
    """Shows a page that stands alone, in a frame of so many pixels, and a sentence under it."""
    inner = html.escape(Path(page).read_text("utf-8"))
    frame = (
        f'<iframe srcdoc="{inner}" title="{html.escape(caption)}" loading="lazy" style="height: {height}px"></iframe>'
    )
    _display([frame], caption)


def _said(command: str, code: int = 0) -> str:
    """What a command says that ends with this exit code."""
    words = shlex.split(command)
    if words[0] == "vitreous":
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said), patch("rich.console._is_jupyter", return_value=False):
            try:
                ended = main(_quick(words[1:]) if QUICK else words[1:])
            except SystemExit as end:  # of --help
                ended = end.code
        text = said.getvalue()
    else:
        done = subprocess.run(
            ["bash", "-c", _bare(command)], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        ended, text = done.returncode, done.stdout + done.stderr
    if ended != code:
        raise RuntimeError(f"{command}\nended with exit code {ended}; expected {code}:\n{text}")
    return _at_home(text)


def _at_home(text: str) -> str:
    """With ~ for this folder."""
    return text.replace(f"{Path.cwd()}/", "~/")


def _quick(words: list[str]) -> list[str]:
    """The same with a training of one epoch, of a tiny model and on one thread."""
    if words[0] != "train" or "--resume" in words:
        return words
    small = {"--epochs": "1", "--threads": "1"}
    if "--init" not in words:
        small |= {"--model": "vit_xxs_4", "--size": "16x24"}
    kept = list(words)
    for option in {"--minutes", *small} & {*kept}:
        del kept[kept.index(option) : kept.index(option) + 2]
    return [*kept, *(word for pair in small.items() for word in pair)]


def _bare(command: str) -> str:
    """The command with this interpreter's own programs, whatever is on PATH."""
    return f'export PATH="{Path(sys.executable).parent}:$PATH"; {command}'


def _terminal(command: str, said: str, most: int) -> None:
    lines = said.rstrip().splitlines()
    if len(lines) > most:
        lines[most // 2 : -(most // 2)] = ["…"]
    text = "\n".join([f"$ {command}", *lines])
    display(Markdown(f"```console\n{text}\n```\n"))


def _line(lines: Sequence[str], words: str, begin: int) -> int:
    for number in range(begin, len(lines)):
        if words in lines[number]:
            return number
    raise ValueError(f"no line of the source holds {words!r}: what a page shows has moved")


def _drawn(draw: Callable[[Figure, Any], Any], frames: Sequence[Any], size: tuple[float, float], layout: Layout):
    """(theme, figure) of each frame, for a light page and then a dark one."""
    global _theme
    try:
        for _theme, theme in enumerate(("light", "dark")):
            with matplotlib.rc_context(_style()):
                for frame in frames:
                    figure = Figure(size, layout=layout)
                    draw(figure, frame)
                    yield theme, figure
    finally:
        _theme = 0


def _style() -> dict[Any, Any]:
    ink, muted, grey, line = map(colour, ("ink", "muted", "grey", "line"))
    return STYLE | {
        "text.parse_math": True,
        "font.size": 11,
        "axes.titlesize": 12,
        "axes.grid": False,
        "image.interpolation": "nearest",
        "text.color": ink,
        "axes.titlecolor": ink,
        "axes.labelcolor": muted,
        "axes.edgecolor": grey,
        "grid.color": line,
        "xtick.color": grey,
        "ytick.color": grey,
        "xtick.labelcolor": muted,
        "ytick.labelcolor": muted,
        "legend.labelcolor": muted,
        "hatch.color": grey,
        "patch.edgecolor": ink,
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "axes.prop_cycle": cycler(color=[colour(name) for name in SERIES]),
        "svg.fonttype": "none",
        "svg.hashsalt": "vitreous",
    }


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    # Text was laid out in the widths of DejaVu, which the fonts of most systems do not reach.
    text = re.sub(r"'DejaVu Sans'[^;\"]*", FONTS, file.getvalue())
    return _url("svg+xml", text.encode())


def _png(figure: Figure) -> str:
    file, smaller = io.BytesIO(), io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    Image.open(file).quantize(128, method=Image.Quantize.FASTOCTREE).save(smaller, format="png")
    return _url("png", smaller.getvalue())


def _url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _image(url: str, caption: str, theme: str, width: int) -> str:
    words = html.escape(caption.replace("`", ""))
    return f'<img class="only-{theme}" alt="{words}" src="{url}" style="width: {width}px">'


def _display(images: Sequence[str], caption: str, more: str = "") -> None:
    said = re.sub(r"`(.+?)`", r"<code>\1</code>", html.escape(caption, quote=False))
    display(HTML(f'<figure class="shown">{"".join(images)}{more}<figcaption>{said}</figcaption></figure>'))
