"""The parts of the page that say what a run was made of, how to repeat it, and what its user must know."""

import dataclasses
import platform
import shlex
import time
from collections.abc import Mapping
from importlib.metadata import version

import numpy as np
import torch

from vitreous.calibration import headline
from vitreous.data.augment import AugmentConfig
from vitreous.data.doctor import Finding
from vitreous.errors import counted
from vitreous.insight.page import escape
from vitreous.insight.report import pieces as html
from vitreous.insight.report.material import Material
from vitreous.insight.report.pieces import lasting, percent, short, whole
from vitreous.insight.report.results import SHOWN_CLASSES
from vitreous.model.presets import name_of
from vitreous.model.vit import count_macs
from vitreous.training.recipe import TrainConfig

SHOWN_DETAILS = 10  # lines of a finding
SPANS = (np.min, np.mean, np.max, np.std)  # of targets
# What a model card says beside the facts, and only its user knows: a word for the field, its title, what it asks
GAPS = {
    "intended_use": ("Intended use", "what the model is for, and who uses it"),
    "out_of_scope": ("Not meant for", "uses that it was not made or tested for"),
    "data_source": ("Origin of the pictures", "who took and labelled them, when, under which licence and consent"),
    "ethics": ("Ethical note", "whom a wrong answer may harm, and what is done about it"),
    "contact": ("Contact", "who answers for the model"),
}


def pictures(m: Material) -> str:
    """The run's own pictures: how many, of which sizes, and what the doctor found."""
    census, spec = m.census, m.predictor.spec
    words = [
        f"{len(census.rows):,} pictures: {census}.",
        f"The model sees {_kind(m)}, at {', '.join(f'{h}×{w}' for h, w in spec.sizes)} (height × width).",
        f"No more is known of them: {escape(census.note)}" if census.note else "",
    ]
    shown = [_counts(m)]
    if not census.note:
        found = "".join(map(_finding, census.findings))
        shown += [
            "<div><h3>What the doctor found</h3>"
            f"{found or '<p>Nothing: no copies, no leaks between the splits, no kinds that differ.</p>'}"
            '<p class="muted small">From headers, contents and labels. <code>vitreous check</code> also decodes every '
            "picture and looks for near copies.</p></div>",
            f"<div><h3>Sizes, height × width</h3>{html.plain(map(escape, census.sizes))}</div>",
        ]
    return html.section("pictures", "Data", words, *shown)


def _kind(m: Material) -> str:
    channels = m.predictor.spec.channels
    return f"{channels} channel{'s' if channels > 1 else ''} of {m.predictor.spec.depth}"


def _counts(m: Material) -> str:
    """The pictures by split and class, or the targets by split."""
    task, census = m.task, m.census
    if census.targets is None:
        return html.table("Pictures of each split", {"split": None, "pictures": whole}, list(census.counts.items()))
    of_split = {name: census.targets[census.split == name] for name in census.counts}
    if task.kind == "regression":
        columns = {"target": None, "split": None, "pictures": whole}
        columns |= dict.fromkeys(("least", "mean", "most", "deviation"), short)
        rows = [
            (html.named(title), name, len(some), *(float(of(some[:, k].astype(np.float64))) for of in SPANS))
            for k, title in enumerate(task.names)
            for name, some in of_split.items()
        ]
        return html.table("Targets of each split", columns, rows, "stacked")
    counts = np.stack([class_counts(m, some) for some in of_split.values()], 1)  # (K, splits)
    rows = [(html.named(name), *each, sum(each)) for name, each in zip(task.names, counts.tolist(), strict=True)]
    noun = "label" if task.kind == "multilabel" else "class"
    columns = {noun: None} | dict.fromkeys((*of_split, "in all"), whole)
    return html.table(f"Pictures of each {noun}", columns, rows[:SHOWN_CLASSES], "sortable")


def class_counts(m: Material, targets: np.ndarray) -> np.ndarray:
    """(K,) pictures of each class or label."""
    if m.task.kind == "classification":
        return np.bincount(targets, minlength=m.task.outputs)
    return targets.sum(0).astype(np.int64)


def _finding(finding: Finding) -> str:
    more = len(finding.details) - SHOWN_DETAILS
    lines = [*finding.details[:SHOWN_DETAILS], *[f"… and {more:,} more"] * (more > 0)]
    word = f'<b class="{"severe" * (finding.severity != "note")}">{finding.severity}</b>'
    title = f"{word} {escape(finding.title)} ({len(finding.details):,})"
    return html.details(title, f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>")


def repeat(m: Material) -> str:
    """The command that trained the model, and all that it depended on."""
    values, plan, model, last = m.run.config(), m.plan, m.predictor.model.config, m.rows[-1]
    chosen = {k: v for k, v in vars(plan.augmentation).items() if v and (k, v) != ("crop", 1)}
    if not plan.augmentation.operations:
        chosen.pop("magnitude", None)
    height, width = model.image_size
    gh, gw = model.grid(height, width)
    told = {
        "Model": f"{name_of(model) or 'of its own kind'}: width {model.width}, depth {model.depth}, {model.heads} "
        f"heads, {gh}×{gw} tokens, {count_macs(model, height, width) / 1e9:.3g} GMACs a picture of {height}×{width}",
        "Length": f"{counted(plan.steps, 'update')} of {counted(plan.batch, 'picture')}, "
        + counted(round(last["epoch"], 2), "epoch")
        + (f", planned by timing for {lasting(plan.budget)}" if plan.budget else ""),
        "Optimizer": f"{plan.optimizer}, largest rate {plan.lr:.3g}{_other_rates(m)}, {plan.schedule} schedule after "
        f"{plan.warmup:.0%} warm-up, weight decay {plan.weight_decay:g}, gradient norm up to {plan.clip:g}",
        "Loss": (f"label smoothing {plan.smoothing:g}, " if m.task.kind == "classification" else "")
        + f"balance {plan.balance}, moving average of the weights {plan.ema:.4g}",
        "Augmentation": ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in chosen.items()) or "none",
        "Seed": str(plan.seed),
        "Machine": ", ".join(
            filter(None, (plan.processor, plan.device, counted(plan.threads, "thread"), plan.precision))
        ),
        "Versions": f"vitreous {values['vitreous']}, torch {plan.torch}, {m.predictor.spec.decoder}",
        "Times": f"{lasting(last['seconds'])} of training; the first estimate was {lasting(plan.seconds)}{_begun(m)}",
        "This report": f"{time.strftime('%Y-%m-%d %H:%M')}, vitreous {version('vitreous')}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.system()} on {platform.machine()}",
    }
    words = ["The same command, data, machine, thread count and versions give the same bits."]
    if plan.budget:
        words = [
            "The run was planned by timing the machine: the same command may plan another number of updates, "
            f"<code>--epochs {max(1, round(last['epoch']))}</code> in place of <code>--minutes</code> does not."
        ]
    line = "".join(f"<span>{escape(word)} </span>" for word in command(m.config, str(values["data"])))
    code = f'<pre class="command"><code>{line}</code></pre>'
    return html.section(
        "repeat", "Repeat this run", words, code, html.facts({name: escape(text) for name, text in told.items()})
    )


def command(config: TrainConfig, data: str) -> list[str]:
    """The command line that trains with these options, an option with its value as one; what is at its default is left
    out.
    """
    parts = [["vitreous", "train", data]]
    for default, chosen in ((TrainConfig(), config), (AugmentConfig(), config.augmentation)):
        for field in dataclasses.fields(default):
            value = getattr(chosen, field.name)
            if value != getattr(default, field.name) and not isinstance(value, AugmentConfig):
                values = value if isinstance(value, tuple) else () if value is True else (value,)
                parts.append([f"--{field.name.replace('_', '-')}", *map(str, values)])
    return [shlex.join(part) for part in parts]


def _other_rates(m: Material) -> str:
    """What learns at other rates than Muon's."""
    plan = m.plan
    if plan.optimizer != "muon":
        return ""
    stem = m.predictor.model.config.tokenizer == "stem" and plan.stem_rate != 1
    others = [f"{plan.lr * plan.stem_rate:.3g} in the stem"] if stem else []
    return f" ({', '.join([*others, f'{plan.lr * plan.rest_rate:.3g} for what AdamW learns'])})"


def _begun(m: Material) -> str:
    try:
        began = (m.run.path / "log.txt").read_text("utf-8", "replace")[:16]
        time.strptime(began, "%Y-%m-%d %H:%M")
    except (OSError, ValueError):
        return ""
    return f"; begun on {began}"


def card(m: Material, given: Mapping[str, str]) -> str:
    """Facts, and marked gaps for what only the user knows."""
    gaps = {}
    for name, (title, asked) in GAPS.items():
        text = escape(given.get(name, "").strip())
        gaps[name] = {title: text or f'<span class="fill">to be filled in: {escape(asked)}</span>'}
    rows = gaps["intended_use"] | gaps["out_of_scope"]
    rows["Training data"] = escape(f"{len(m.census.rows):,} pictures ({m.census}) of {m.run.config()['data']}")
    rows |= gaps["data_source"] | {"Evaluation data": escape(m.subject), "Metrics": escape(headline(m.task, m.summary))}
    rows |= {"Limits": html.plain(limits(m))} | gaps["ethics"] | gaps["contact"]
    words = ("What the run tells is filled in. What only its maker knows is marked.",)
    return html.section("card", "Model card", words, html.facts(rows))


def limits(m: Material) -> list[str]:
    """HTML lines: what the run itself shows of where its answers end, and nothing that it does not."""
    task, census = m.task, m.census
    lines = [f"The measures rest on {m.summary['n']:,} pictures; their intervals say how far that goes."]
    if "test" not in census.counts:
        lines.append("There is no test split: the validation pictures also served to calibrate the answers.")
    lines.append(f"It takes pictures of {_kind(m)}; others that cannot be converted are refused by name.")
    if task.kind == "classification":
        lines.append(f"It names one of {task.outputs:,} classes whatever a picture shows, also where it shows none.")
        each = {name: one for name, one in m.summary["classes"].items() if one["support"]}
        name, worst = min(each.items(), key=lambda item: item[1]["recall"])
        recall, support = percent(worst["recall"]), worst["support"]
        lines.append(f"The lowest recall is that of “{html.named(name)}”: {recall} of {support:,} pictures.")
    if census.targets is not None and task.kind == "regression":
        some = census.targets[census.split == "train"]
        lines += [
            f"It was trained on “{html.named(name)}” from {short(low)} to {escape(short(high, unit))}; answers beyond "
            "are untested."
            for name, unit, low, high in zip(task.names, task.units, some.min(0), some.max(0), strict=True)
        ]
    elif census.targets is not None:
        counts = class_counts(m, census.targets[census.split == "train"])
        name, fewest = task.names[int(counts.argmin())], int(counts.min())
        lines.append(f"The fewest pictures to train on has “{html.named(name)}”: {fewest:,}.")
    return [*lines, "No measures were taken for groups of people or conditions other than what is learned."]
