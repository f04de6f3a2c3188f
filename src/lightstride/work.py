"""The work folder, from which a killed run goes on.

`work.json` says which run the folder belongs to.  The run's stages keep their own files there;
a stage that is finished has a file that was renamed into place.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from lightstride.distributed import barrier, broadcast_object, rank
from lightstride.errors import OutputError, WorkError
from lightstride.files.sealed import read_sealed, write_sealed

VERSION = 1
WORK_FILE = "work.json"


def open_work(
    folder: Path, run: Mapping[str, object], *, resume: bool, gone: Collection[str] = ()
) -> None:
    """Make a work folder for a run, or go on with it; refuse the folder of another run.

    `run` is everything the stages' results depend on; folders of earlier versions may have more of
    it, under the names in `gone`.
    """
    problem = broadcast_object(_open(folder, run, resume, gone) if rank() == 0 else None)
    if problem is not None:
        kind, text = problem
        raise {"work": WorkError, "output": OutputError}[kind](text)
    barrier()


def check_work(folder: Path, *, resume: bool) -> None:
    """Raise what `open_work` would for a folder, as far as that is known without the run."""
    has_run = (folder / WORK_FILE).exists()
    if not has_run and not is_new(folder):
        raise OutputError(f"work folder {folder} is not empty and belongs to no run")
    if has_run and not resume:
        raise WorkError(f"work folder {folder} has an unfinished run; go on with it by --resume")


def is_new(folder: Path) -> bool:
    """Whether a folder is not there, or empty but for a half-written `work.json`."""
    if not folder.is_dir():
        return not folder.exists()
    return all(path.match(f".{WORK_FILE}.*.partial") for path in folder.iterdir())


def _open(
    folder: Path, run: Mapping[str, object], resume: bool, gone: Collection[str]
) -> tuple[str, str] | None:
    document = {"version": VERSION, **json.loads(json.dumps(run))}
    path = folder / WORK_FILE
    if not path.exists():
        if not is_new(folder):
            return "output", f"work folder {folder} is not empty and belongs to no run"
        write_sealed(path, document)
        return None
    try:
        there = read_sealed(path, dict[str, object], WorkError)
    except WorkError as error:
        return "work", f"{error}: {path} is damaged; delete the folder {folder}"
    if there.get("version") != VERSION:
        return "work", (
            f"work folder {folder} is of another version of this program; delete it, or give "
            "another with --work"
        )
    known = {*document, *there} - set(gone)
    different = sorted(key for key in known if document.get(key) != there.get(key))
    if different:
        return "work", (
            f"work folder {folder} belongs to another run: {', '.join(different)} differ; delete "
            "it, or give another with --work"
        )
    if not resume:
        return "work", f"work folder {folder} has an unfinished run; go on with it by --resume"
    return None
