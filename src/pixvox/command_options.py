"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Overrides, such as head=maskrcnn epochs=20.", show_default=False
    ),
]
ConfigDir = Annotated[
    Path | None, typer.Option("--config-dir", help="Folder of your own configurations, searched first.")
]
DataPath = Annotated[
    Path | None,
    typer.Option("--data", help="A dataset on disk; its layout is found (data=NAME takes a configuration)."),
]
RunPath = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run folder, such as runs/last, or a checkpoint.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one machine-readable object last.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
