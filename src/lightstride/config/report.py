"""Flags of `lightstride report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from lightstride.config.base import Command, require


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Command):
    """Turn folders of results into one page with pictures."""

    example: ClassVar[str] = "lightstride report smollm2-pruned -o report.html"

    folder: Annotated[
        Positional[tuple[str, ...]], arg(metavar="DIR [DIR ...]", help_behavior_hint="(required)")
    ]
    """Folders with result.json and search.jsonl files."""
    output: Annotated[str, arg(aliases=("-o",), metavar="FILE")] = "report.html"
    """The page to write (.html is added to a name without it); its pictures go beside it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.folder), "report", "without a folder", "given at least one")

    @property
    def page(self) -> Path:
        """The page's file, which ends in .html or .htm."""
        path = Path(self.output)
        is_page = path.suffix.lower() in (".html", ".htm")
        return path if is_page else path.with_name(f"{path.name}.html")
