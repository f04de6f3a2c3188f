"""The command `cache`: list, verify or delete the converted copies of models."""

import sys
import time
from collections.abc import Mapping, Sequence

from lightstride.config import CacheConfig
from lightstride.errors import ModelError
from lightstride.files import cache_folder
from lightstride.models.opening.conversions import Copy, clear, copies, limit_bytes, older
from lightstride.results import markdown_table


def cache(config: CacheConfig) -> Mapping[str, object]:
    """Print what is kept, or what was deleted; the same as a document."""
    if config.clear is not None:
        return cleared(config.clear)
    found = [*copies(), *older()]
    rows = [described(copy, thorough=config.verify) for copy in found]
    total = sum(copy.num_bytes for copy in found)
    limit = limit_bytes()
    if rows:
        sys.stdout.write(copies_table(rows) + "\n")
    sys.stdout.write(
        f"{cache_folder()}: {total / 1e9:.2f} of {limit / 1e9:g} GB (LIGHTSTRIDE_CACHE_GB)\n"
    )
    damaged = [str(row["name"]) for row in rows if row["state"] == "damaged"]
    if config.verify and damaged:
        raise ModelError(f"damaged: {', '.join(damaged)}; the next use converts again")
    return {"folder": str(cache_folder()), "bytes": total, "limit_bytes": limit, "copies": rows}


def cleared(names: Sequence[str]) -> Mapping[str, object]:
    """Delete the copies of these names, all without a name; what was deleted."""
    before = {copy.name: copy.num_bytes for copy in (*copies(), *older())}
    wanted: Sequence[str | None] = names or (None,)
    gone = [copy.name for name in wanted for copy in clear(name)]
    freed = sum(before.get(name, 0) for name in gone)
    sys.stdout.write(f"deleted {len(gone)} copies, {freed / 1e9:.2f} GB\n")
    return {"folder": str(cache_folder()), "deleted": gone, "freed_bytes": freed}


def described(copy: Copy, *, thorough: bool) -> dict[str, object]:
    """One copy: name, size, last use, state, source."""
    state = "sound" if copy.is_sound(thorough=thorough) else "damaged"
    return {
        "name": copy.name,
        "bytes": copy.num_bytes,
        "used": copy.used,
        "state": state if copy.folder.parent.name == "converted" else "of an earlier version",
        "source": copy.source,
        "source_sha256": copy.source_sha256,
    }


def copies_table(rows: Sequence[Mapping[str, object]]) -> str:
    """The copies, for a person."""
    cells = []
    for row in rows:
        size, used = row["bytes"], row["used"]
        assert isinstance(size, int)
        assert isinstance(used, float)
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(used)) if used else "–"
        cells.append([str(row["name"]), f"{size / 1e6:,.0f} MB", day, str(row["state"])])
    return markdown_table(["copy", "size", "last used", "state"], cells)
