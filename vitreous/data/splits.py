"""Which pictures are trained on, and which are held out."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from vitreous.errors import InputError

SPLITS = ("train", "validation", "test")
_SPLIT_OF_WORD = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def split_of(word: str) -> str | None:
    """The split that a folder or a table's cell means ("Val" -> "validation"), or None where it means none."""
    return _SPLIT_OF_WORD.get(word.strip().lower())


def assign_splits(
    given: np.ndarray,
    strata: np.ndarray | None,
    groups: np.ndarray | None,
    digests: Sequence[str],
    seed: int,
    fraction: float = 0.15,
    class_names: Sequence[str] = (),
) -> np.ndarray:
    """The split of each picture: "train", "validation" or "test".

    Splits that are given stand, "" counts as train, and test pictures are never touched. Where no validation split
    is given, one is drawn from the train pictures: `round(fraction * n)` of each class, at least one, leaving at least
    one. What moves is a unit: a group, or else all pictures with one digest; groups that share a picture move as one.
    The order of drawing is a hash of the seed and the unit, so a split does not depend on the order of files.

    Args:
        given: (n,) of str: "train", "validation", "test" or "".
        strata: (n,) of int, the class of each picture; None draws over all pictures alike.
        groups: (n,) of str, or None.
        digests: n of them, equal where pictures are identical.
        seed: another seed draws another split.
        fraction: of the train pictures, between 0 and 1.
        class_names: what the classes are called in messages.

    Raises:
        InputError: there is nothing to train on, a class is not among the train pictures, or a class (or, without
            classes, all pictures) cannot stand on both sides. All such faults are reported together.
    """
    if not 0 < fraction < 1:
        raise InputError(f"The validation fraction must lie between 0 and 1, but it is {fraction}.")
    splits = np.where(given == "", "train", given).astype("U10")
    classes = np.zeros(len(splits), dtype=np.int64) if strata is None else np.asarray(strata, dtype=np.int64)
    titles = {c: "" if strata is None else f"class '{_title(c, class_names)}'" for c in np.unique(classes).tolist()}

    train = np.flatnonzero(splits == "train")
    if not len(train):
        raise InputError("There are no pictures to train on: every picture is given as validation or test.")
    in_train = set(classes[train].tolist())
    faults = [
        f"{title} has pictures in {' and '.join(s for s in SPLITS[1:] if s in splits[classes == c])}, but none in train"
        for c, title in titles.items()
        if c not in in_train
    ]
    if "validation" not in splits:
        units = _units(
            train, classes, None if groups is None else groups[train], [digests[i] for i in train.tolist()], seed
        )
        taken, more = _draw(units, fraction, titles, grouped=groups is not None)
        faults += more
        splits[[i for unit in taken for i in unit.rows]] = "validation"
    if faults:
        raise InputError.listing("The pictures cannot be split into train and validation:", faults)
    return splits


def find_leaks(
    splits: np.ndarray, keys: Sequence[str] | np.ndarray, names: Sequence[str]
) -> list[tuple[str, str, str, str]]:
    """Held-out pictures whose key stands in an earlier split too.

    The keys (n of them) are digests, to find identical pictures on both sides, or groups, to find torn groups.
    Returns (split a, split b, name a, name b) for each such picture b, with the first picture a of the earlier split
    that has its key; splits are ordered train, validation, test.
    """
    members: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for split, key, name in zip(splits.tolist(), keys, names, strict=True):
        members[str(key)][split].append(name)
    return [
        (a, b, sides[a][0], name)
        for sides in members.values()
        for i, a in enumerate(SPLITS)
        for b in SPLITS[i + 1 :]
        if a in sides and b in sides
        for name in sides[b]
    ]


@dataclass(frozen=True)
class _Unit:
    """Pictures that stand on one side."""

    rows: list[int]
    counts: dict[int, int]  # pictures of each class


def _units(
    rows: np.ndarray, classes: np.ndarray, groups: np.ndarray | None, digests: Sequence[str], seed: int
) -> list[_Unit]:
    """The units of some rows, in the order of drawing."""
    keys = digests if groups is None else _tied(groups.tolist(), digests)
    members: dict[str, list[int]] = defaultdict(list)
    for row, key in zip(rows.tolist(), keys, strict=True):
        members[key].append(row)
    order = sorted(members, key=lambda key: (_hash(seed, key), key))
    of_row = classes.tolist()
    units = []
    for key in order:
        counts: dict[int, int] = {}
        for row in members[key]:
            counts[of_row[row]] = counts.get(of_row[row], 0) + 1
        units.append(_Unit(members[key], counts))
    return units


def _tied(groups: Sequence[str], digests: Sequence[str]) -> list[str]:
    """For each picture the first, by name, of all groups that identical pictures tie to its own (union-find)."""
    parent: dict[str, str] = {group: group for group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    first: dict[Hashable, str] = {}
    for group, digest in zip(groups, digests, strict=True):
        a, b = sorted((root(group), root(first.setdefault(digest, group))))
        parent[b] = a
    return [root(group) for group in groups]


def _draw(
    units: Sequence[_Unit], fraction: float, titles: dict[int, str], *, grouped: bool
) -> tuple[list[_Unit], list[str]]:
    """The units to validate with, and the faults that stand against drawing them."""
    totals: dict[int, int] = defaultdict(int)
    holders: dict[int, list[int]] = defaultdict(list)  # class -> units that hold it, in the order of drawing
    for i, unit in enumerate(units):
        for c, n in unit.counts.items():
            totals[c] += n
            holders[c].append(i)
    faults = [_too_few(titles[c], totals[c], grouped) for c in sorted(totals) if len(holders[c]) < 2]
    if faults:
        return [], faults

    quota = {c: min(max(round(fraction * n), 1), n - 1) for c, n in totals.items()}
    drawn: dict[int, int] = defaultdict(int)
    taken: list[int] = []

    def change(i: int) -> int:
        """How much further from the quotas the draw is with this unit than without; below 0, it is nearer."""
        return sum(abs(drawn[c] + n - quota[c]) - abs(drawn[c] - quota[c]) for c, n in units[i].counts.items())

    def leaves_some(i: int) -> bool:
        return all(drawn[c] + n < totals[c] for c, n in units[i].counts.items())

    def take(i: int) -> None:
        taken.append(i)
        for c, n in units[i].counts.items():
            drawn[c] += n

    # First a unit for each class, the class with the least choice first; then on towards the quotas.
    for c in sorted(holders, key=lambda c: (len(holders[c]), c)):
        if drawn[c]:
            continue
        best = _first_nearer((i for i in holders[c] if leaves_some(i)), change)
        if best is None:
            faults.append(
                f"{titles[c]} cannot be held out without taking all of another class from train, as their groups or "
                "copies are tied together: say yourself which pictures validate, in a split column or folder"
            )
        else:
            take(best)
    chosen = set(taken)
    for i in range(len(units)):
        if i not in chosen and change(i) < 0 and leaves_some(i):
            take(i)
    return [units[i] for i in taken], faults


def _first_nearer(candidates: Iterable[int], change: Callable[[int], int]) -> int | None:
    """The first candidate that brings the draw nearer to its quotas, or else the one that harms it least."""
    best, least = None, None
    for i in candidates:
        cost = change(i)
        if cost < 0:
            return i
        if least is None or cost < least:
            best, least = i, cost
    return best


def _too_few(title: str, pictures: int, grouped: bool) -> str:
    """Why a class of one unit cannot be split; without a title, why all pictures cannot."""
    of_class, mend = (f" of {title}", " or remove the class") if title else ("", "")
    if pictures == 1:
        return (
            f"{title or 'the data'} has one picture; at least 2 are needed, one to train on and one to validate with: "
            f"add pictures{mend}"
        )
    if grouped:
        return (
            f"all {pictures:,} pictures{of_class} belong to one group (groups with identical pictures count as one), "
            f"which leaves nothing to validate with: add groups{mend}, or split without groups"
        )
    return f"all {pictures:,} pictures{of_class} are copies of one; at least 2 are needed: add pictures{mend}"


def _title(c: int, class_names: Sequence[str]) -> str:
    return class_names[c] if 0 <= c < len(class_names) else str(c)


def _hash(seed: int, key: str) -> bytes:
    return blake2b(f"{seed}:{key}".encode("utf-8", "surrogateescape"), digest_size=16).digest()
