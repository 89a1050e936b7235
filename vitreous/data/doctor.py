"""Finds bad files, duplicates, leaks and imbalance before training does."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from vitreous.data.decode import MAX_PIXELS, Facts, decode, thumbnail
from vitreous.data.notes import digest
from vitreous.data.sources import Source, open_source
from vitreous.data.splits import find_leaks
from vitreous.data.store import in_order, read_in_order, reader
from vitreous.data.tables import Columns
from vitreous.data.targets import infer_task
from vitreous.data.workers import DECODERS
from vitreous.errors import InputError, counted

NEAR_BITS = 3  # bits of 64 by which the hashes of near duplicates may differ
NEAR_OTHERS = 2000  # pictures of a bucket that one is compared with: those whose hashes follow
NEAR_MOST = 50  # of them, that can be its near duplicates
NEAR_LEVELS = 6.0  # grey levels of 255 by which their thumbnails may differ, on average
IMBALANCE = 10  # largest class over smallest, from which on it is worth a word


@dataclass(frozen=True)
class Scan:
    """What the headers say: facts (None where unreadable) and content digest a picture, and faults by number."""

    facts: list[Facts | None]
    digests: list[str]
    faults: dict[int, str]

    def only(self, numbers: Sequence[int]) -> Self:
        """The scan of some of the pictures."""
        faults = {new: self.faults[old] for new, old in enumerate(numbers) if old in self.faults}
        return type(self)([self.facts[i] for i in numbers], [self.digests[i] for i in numbers], faults)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong ("error"), doubtful ("warning") or worth knowing ("note"), and the pictures it is of."""

    severity: str
    code: str  # a word that stays the same, for programs
    title: str
    details: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Checkup:
    """What `check` found. `ok` where training would not be wrong."""

    pictures: int
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """Whether no finding is an error."""
        return not any(finding.severity == "error" for finding in self.findings)


def scan(
    source: Source, threads: int, max_pixels: int = MAX_PIXELS, progress: Callable[[int], None] = lambda n: None
) -> Scan:
    """Reads every file once: its digest, and what its header says. Decodes nothing.

    What the source knows already, as it was packed with these, is not read: it is held against it when it is.
    """

    def look(i: int) -> tuple[Facts | None, str, str]:
        if source.known and _fits(source.known[i].facts, max_pixels):
            return source.known[i].facts, source.known[i].digest, ""
        try:
            picture = source.read(i)
            return DECODERS.inspect(picture, source.names[i], max_pixels), digest(picture), ""
        except InputError as fault:
            return None, "", str(fault)

    facts, digests, faults = [], [], {}
    for i, (fact, text, fault) in enumerate(in_order(look, range(len(source.names)), threads, ahead=64)):
        facts.append(fact)
        digests.append(text)
        if fault:
            faults[i] = fault
        progress(i + 1)
    return Scan(facts, digests, faults)


def fast_findings(source: Source, found: Scan) -> list[Finding]:
    """What the headers and the labels tell: unreadable files, copies, leaks, kinds that differ, imbalance."""
    findings = []
    if found.faults:
        findings.append(Finding("error", "unreadable", "cannot be read", list(found.faults.values())))
    findings += _copies(source, found.digests)
    kinds = Counter((f.channels, f.depth) for f in found.facts if f)
    grey_among_rgb = {channels for channels, _ in kinds} == {1, 3} and len(kinds) == 2
    if len(kinds) > 1 and not (grey_among_rgb and len({depth for _, depth in kinds}) == 1):
        findings.append(Finding("error", "kinds", "channels or depths differ", _odd_ones(source, found, kinds)))
    findings += _labels(source)
    return findings


def check_data(
    data: str | os.PathLike,
    *,
    target: Sequence[str] = (),
    path_column: str | None = None,
    group: str | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Checkup:
    """The whole examination of what `train` would take: all that `fast_findings` tells, every picture decoded, near
    duplicates, sizes. `progress` is called with how much is done, of how much.

    Raises `InputError` where there is nothing that could be examined.
    """
    source = open_source(data, Columns.of(target, path_column, group))
    if source.splits.any():
        source = replace(source, splits=np.where(source.splits == "", "train", source.splits))
    threads, total = os.cpu_count() or 1, 2 * len(source)
    found = scan(source, threads, max_pixels, lambda done: progress(done, total))
    findings = fast_findings(source, found)

    sound = [i for i in range(len(source)) if i not in found.faults]
    thumbs, broken = {}, []
    results = read_in_order(reader(source.only(sound), _Thumbnails(max_pixels)), len(sound), threads)
    for done, (i, result) in enumerate(zip(sound, results, strict=True), 1):
        if isinstance(result, str):
            broken.append(result)
        else:
            thumbs[i] = result[1]
        progress(total - len(sound) + done, total)
    if broken:
        findings.append(Finding("error", "undecodable", "cannot be decoded", broken))
    pairs = near_duplicates(thumbs, found.digests)
    across = [p for p in pairs if source.splits[p[0]] != source.splits[p[1]]]
    for code, title, some in (
        ("near-leaks", "look almost alike, on both sides of a split", across),
        ("near-copies", "look almost alike", sorted(set(pairs) - set(across))),
    ):
        if some:
            lines = [f"{_side(source, a)} ≈ {_side(source, b)}" for a, b in some]
            findings.append(Finding("warning", code, title, lines))
    findings.append(Finding("note", "sizes", "sizes (height × width)", size_histogram([f for f in found.facts if f])))
    return Checkup(len(source.names), findings)


def near_duplicates(thumbs: dict[int, np.ndarray], digests: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs (a < b) of pictures whose thumbnails nearly agree and whose bytes differ. Flat pictures do not count.

    A 64-bit difference hash finds the candidates: hashes that differ in at most 3 bits share one of four 16-bit
    parts, so only pictures within such a bucket are compared. Of very many that are alike (frames of a video), each is
    paired with some: time and pairs grow linearly.
    """
    numbers = np.array([i for i, thumb in thumbs.items() if thumb.std() > 4], dtype=np.int64)
    if not len(numbers):
        return []
    small = np.stack([thumbs[i] for i in numbers])
    blocks = small.reshape(-1, 8, 2, 8, 2).mean((2, 4))
    bits = (blocks > np.roll(blocks, -1, 2)).reshape(len(numbers), 64)
    hashes = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    pairs = set()
    for part in range(4):
        keys = (hashes >> np.uint64(16 * part)) & np.uint64(0xFFFF)
        order = np.lexsort((hashes, keys))
        starts = np.flatnonzero(np.diff(keys[order], prepend=-1.0))
        for bucket in np.split(order, starts[1:]):
            for i, a in enumerate(bucket[:-1]):
                others = bucket[i + 1 : i + 1 + NEAR_OTHERS]
                close = others[np.bitwise_count(hashes[others] ^ hashes[a]) <= NEAR_BITS][:NEAR_MOST]
                alike = close[np.abs(small[close] - small[a]).mean((1, 2)) <= NEAR_LEVELS]
                pairs.update((int(numbers[min(a, b)]), int(numbers[max(a, b)])) for b in alike)
    return sorted((a, b) for a, b in pairs if digests[a] != digests[b])


def size_histogram(facts: Iterable[Facts]) -> list[str]:
    """A line for each of the ten commonest sizes, and one for the rest."""
    sizes = Counter((f.height, f.width) for f in facts)
    total = max(sizes.total(), 1)
    lines = [f"{h} × {w}: {n:,} ({n / total:.0%})" for (h, w), n in sizes.most_common(10)]
    if len(sizes) > 10:
        rest = total - sum(n for _, n in sizes.most_common(10))
        lines.append(f"{len(sizes) - 10:,} other sizes: {rest:,} ({rest / total:.0%})")
    return lines


def _fits(facts: Facts, max_pixels: int) -> bool:
    """Whether a picture is surely neither too large nor too small; others are looked at."""
    pixels = facts.height * facts.width
    return pixels >= 4 and pixels * max(4, facts.channels) <= max_pixels


@dataclass(frozen=True)
class _Thumbnails:
    """Makes (16, 16) of pictures, as `InputSpec` makes what a model takes."""

    max_pixels: int

    def read(self, picture: np.ndarray, name: str) -> tuple[int, np.ndarray]:
        return 0, thumbnail(decode(picture, name, max_pixels=self.max_pixels))

    def read_all(self, pictures: Sequence[bytes], names: Sequence[str]) -> list[tuple[int, np.ndarray] | InputError]:
        return DECODERS.thumbnails(pictures, names, self.max_pixels)


def _copies(source: Source, digests: Sequence[str]) -> list[Finding]:
    groups = defaultdict(list)
    for i, text in enumerate(digests):
        if text:
            groups[text].append(i)
    copies = [group for group in groups.values() if len(group) > 1]
    labels = [tuple(column[i].item() for column in source.columns.values()) for i in range(len(source.names))]
    torn = [group for group in copies if len({labels[i] for i in group}) > 1]
    leaks = [
        f"{a} ({side_a}) = {b} ({side_b})" for side_a, side_b, a, b in find_leaks(source.splits, digests, source.names)
    ]
    lines = [[" = ".join(_side(source, i) for i in group) for group in some] for some in (torn, copies)]
    findings = []
    if torn:
        findings.append(Finding("error", "torn-copies", "the same picture under different labels", lines[0]))
    if leaks:
        findings.append(Finding("error", "leaks", "the same picture on both sides of a split", leaks))
    if copies:
        findings.append(Finding("warning", "copies", "exact copies", lines[1]))
    return findings


def _odd_ones(source: Source, found: Scan, kinds: Counter) -> list[str]:
    usual = kinds.most_common(1)[0][0]
    lines = [f"{counted(n, 'picture')} with {counted(c, 'channel')} of {d}" for (c, d), n in kinds.most_common()]
    odd = [(i, f) for i, f in enumerate(found.facts) if f and (f.channels, f.depth) != usual]
    return lines + [f"{source.names[i]}: {counted(f.channels, 'channel')} of {f.depth}" for i, f in odd]


def _labels(source: Source) -> list[Finding]:
    if not source.columns:
        return [Finding("error", "no-labels", "no labels")]
    try:
        task = infer_task(source.columns)
        targets = task.encode(source.columns, source.names)
    except InputError as fault:
        return [Finding("error", "labels", str(fault))]
    if task.kind != "classification":
        return []
    training = np.isin(source.splits, ["train", ""])
    counts = np.bincount(targets[training], minlength=task.outputs)
    lines = [f"{task.names[k]}: {counts[k]:,}" for k in np.argsort(-counts, kind="stable")]
    findings = [Finding("note", "classes", "pictures a class to train on", lines)]
    lonely = [task.names[k] for k in np.flatnonzero(counts < 2)]
    if lonely:
        findings.insert(0, Finding("error", "tiny-classes", "classes with fewer than two pictures to train on", lonely))
    elif counts.max() >= IMBALANCE * counts.min():
        most, least = counts.argmax(), counts.argmin()
        ratio = f"{task.names[most]} has {counts[most] / counts[least]:.0f} times the pictures of {task.names[least]}"
        findings.insert(0, Finding("warning", "imbalance", "classes are unbalanced (see --balance)", [ratio]))
    return findings


def _side(source: Source, i: int) -> str:
    return f"{source.names[i]} ({source.splits[i]})" if source.splits[i] else source.names[i]
