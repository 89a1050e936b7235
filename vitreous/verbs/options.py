"""Options that several verbs take."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from vitreous.training.recipe import parse_minutes

DATA = (
    "A folder of class folders, a table (.csv, .tsv, .parquet), arrays (.npz), a .tar of class folders, or digits; "
    "shards (.tar, .parquet): a folder, a pattern or a URL of them; or hf://owner/name."
)
# A number that is typed with or without a unit.
MINUTES = PrimitiveConstructorSpec[float](
    nargs=1,
    metavar="TIME",
    instance_from_str=lambda words: parse_minutes(words[0]),
    is_instance=lambda value: isinstance(value, float),
    str_from_instance=lambda value: [str(value)],
)
Json = Annotated[bool, arg(help="Print JSON for machines; what is meant for people goes to standard error.")]
Data = Annotated[Positional[str], arg(help=DATA, metavar="DATA")]
OptionalData = Annotated[Positional[str | None], arg(help=DATA, metavar="DATA")]
Pictures = Annotated[
    Positional[tuple[str, ...]], arg(help="Files, and folders of them; shards of them.", metavar="PICTURES…")
]
TrainedRun = Annotated[Positional[Path], arg(help="A run directory that train made.", metavar="RUN")]
Run = Annotated[Positional[Path], arg(help="A run directory that train made, or a file of export.", metavar="RUN")]
