"""explain and report: one page each."""

from pathlib import Path
from typing import Any

from vitreous.errors import InputError
from vitreous.infer.predictor import AnswerConfig
from vitreous.training.journal import Journal
from vitreous.verbs.options import Json, OptionalData, Pictures, TrainedRun
from vitreous.verbs.output import answer_line, print_json


def explain(
    run: TrainedRun,
    pictures: Pictures,
    /,
    *,
    out: Path = Path("why.html"),
    target: str | None = None,
    methods: tuple[str, ...] = (),
    skip_bad: bool = False,
    device: str = "auto",
    json: Json = False,
) -> int:
    """Shows how a model came to its answers: one page with attention, attributions and how far to believe them.

    The page opens in a browser without a network: what each patch attends to, which parts the answer rests on by
    several methods, each with its faithfulness beside that of random maps, the answer block by block, and its parts.

    Args:
        out: The page to write.
        target: The class, label or number to explain, or "cat - dog": what speaks for the first rather than the
            second; default: each picture's most probable, or the first number.
        methods: Attributions to show, of guided_shapley, shapley, occlusion, integrated_gradients, integrated_tokens,
            gradient_attention, rollout, grad_cam, attention and contributions; default: most of them. The first
            is what the page opens with.
        skip_bad: Leave out pictures that cannot be read, by name, rather than stop.
        device: auto is a GPU where there is one.
    """
    from vitreous.infer.predictor import load
    from vitreous.insight.explain import SHOWN, explain

    if not pictures:
        raise InputError("expected pictures, or folders of them")
    _check_page(out)
    journal = Journal(stderr=json)
    with journal.bar("explaining", 1) as progress:
        found = explain(
            load(run, AnswerConfig(device=device)),
            pictures,
            target=target,
            methods=methods or SHOWN,
            skip_bad=skip_bad,
            say=journal.say,
            progress=progress,
        )
    found.save(out)
    for picture in found.pictures:
        first, attribution = next(iter(picture.attributions.items()))
        journal.say(
            f"{answer_line(picture.prediction, 1)}   explained: {picture.label}, by {first.replace('_', ' ')} with a "
            f"faithfulness of {float(picture.faithfulness[first].score):.3g}, {picture.verdict(first)} "
            f"(random maps stay within ±{picture.chance:.3g})" + (f"; {attribution.note}" if attribution.note else "")
        )
    journal.say(f"page: {out}")
    if json:
        print_json({"page": str(out), "pictures": [picture.summary() for picture in found.pictures]})
    return 0


def report(
    run: TrainedRun,
    data: OptionalData = None,
    /,
    *,
    out: Path | None = None,
    target: tuple[str, ...] = (),
    path_column: str | None = None,
    split: str = "auto",
    skip_bad: bool = False,
    device: str = "auto",
    json: Json = False,
) -> int:
    """Shows a whole run in one page: curves, classes, calibration, mistakes, data, and how to repeat it.

    The page opens in a browser without a network. Its numbers are those of eval: of the run's own held-out pictures,
    or of DATA. Where the pictures are gone it shows what the training wrote.

    Args:
        out: The page to write; default: report.html in the run directory.
        target: Target columns of a table, in the order of the run's; default: those it was trained on.
        path_column: Column of a table that holds the pictures' paths.
        split: Which pictures of the run's data to score: auto (those held out), train, validation, test or all.
        skip_bad: Leave out pictures that cannot be read, by name, rather than stop.
        device: auto is a GPU where there is one.
    """
    if out is not None:
        _check_page(out)
    options = {"target": target, "path_column": path_column, "split": split, "skip_bad": skip_bad, "device": device}
    page = write_report(Journal(stderr=json), run, data, out, **options)
    if json:
        print_json({"page": str(page)})
    return 0


def write_report(journal: Journal, run: Path, *places: str | Path | None, **options: Any) -> Path:
    """The page of a run with all that it can have; `places` are the data, and where to write."""
    from vitreous.insight.attribution import METHODS
    from vitreous.insight.figures import model_pictures
    from vitreous.insight.report import METHOD, write_report

    with journal.bar("evaluating", 1) as progress:
        shown = {"maps": METHODS[METHOD], "figures": model_pictures, "say": journal.say, "progress": progress}
        page = write_report(run, *places, **options, **shown)
    journal.say(f"page: {page}")
    return page


def _check_page(path: Path) -> None:
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {path}: expected a name that ends in .html")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--out {path}: there is no folder {path.parent}")
