"""Options that several verbs take."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

DATA = (
    "A folder of class folders, a table (.csv, .tsv, .parquet), arrays (.npz), a .tar of class folders, or digits; "
    "shards (.tar, .parquet): a folder, a pattern or a URL of them; or hf://owner/name."
)
Json = Annotated[bool, arg(help="Print JSON for machines; what is meant for people goes to standard error.")]
Data = Annotated[Positional[str], arg(help=DATA, metavar="DATA")]
OptionalData = Annotated[Positional[str | None], arg(help=DATA, metavar="DATA")]
Pictures = Annotated[
    Positional[tuple[str, ...]], arg(help="Files, and folders of them; shards of them.", metavar="PICTURES…")
]
TrainedRun = Annotated[Positional[Path], arg(help="A run directory that train made.", metavar="RUN")]
Run = Annotated[Positional[Path], arg(help="A run directory that train made, or a file of export.", metavar="RUN")]
