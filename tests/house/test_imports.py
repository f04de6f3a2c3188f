"""The house rules that a machine can check: imports, the map, docstrings, lengths, names."""

import ast
import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import lightstride

ROOT = Path(lightstride.__file__).parent
DESIGN = Path(__file__).parents[2] / "docs" / "design.md"
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted(ROOT.rglob("*.py"))
}

# A room may import itself and these; commands join them all.
ALLOWED = {
    "__init__": set(),
    "announce": set(),
    "lean": set(),
    "errors": set(),
    "progress": set(),
    "streams": {"errors"},
    "files": {"errors"},
    "config": {"errors"},
    "results": {"errors", "files"},
    "distributed": {"errors"},
    "work": {"errors", "files", "distributed", "results"},
    "search": {"errors", "files", "distributed"},
    "models": {"errors", "files", "progress"},
    "data": {"errors", "files", "models"},
    "memory": {"errors", "files", "distributed", "search", "models"},
    "generate": {"errors", "config", "models", "memory"},
    "training": {"errors", "files", "distributed", "models"},
    "recover": {"errors", "files", "progress", "distributed", "models", "training"},
    "prune": {
        "errors",
        "progress",
        "config",
        "files",
        "distributed",
        "search",
        "models",
        "recover",
        "results",
        "training",
        "work",
    },
    "smash": {
        "errors",
        "progress",
        "config",
        "files",
        "distributed",
        "models",
        "data",
        "memory",
        "generate",
        "training",
    },
    "checkpoint": {"errors", "files", "models", "memory", "generate", "smash"},
    "export": {"errors", "progress", "files", "models", "prune", "checkpoint"},
    "evaluate": {"errors", "progress", "files", "models", "data", "generate", "results"},
    "bench": {"errors", "models", "generate", "results", "checkpoint"},
    "report": {"errors", "files", "results"},
    "serve": {"errors", "config", "generate"},
}
ALLOWED["commands"] = {*ALLOWED}
WITHOUT_TORCH = ("__init__", "errors", "config", "results", "report", "streams", "cli", "__main__")
TORCH_OF_SERVE = "serve.engine"


def allowed_rooms(module: str) -> set[str]:
    room = module.split(".")[0]
    if room in ("cli", "__main__"):
        return {*ALLOWED, "cli"}
    return ALLOWED[room] | {room}


def imports(tree: ast.AST) -> Iterator[str]:
    """Every imported module, dotted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def rooms(tree: ast.AST) -> set[str]:
    """The rooms of this package that a module imports."""
    found = set()
    for name in imports(tree):
        first, _, rest = name.partition(".")
        if first == "lightstride":
            found.add(rest.split(".")[0] or "__init__")
    return found


@pytest.fixture(params=FILES)
def module(request: pytest.FixtureRequest) -> tuple[str, Path, ast.Module]:
    path = FILES[request.param]
    return request.param, path, ast.parse(path.read_text("utf-8"))


def test_imports_follow_the_table(module: tuple[str, Path, ast.Module]) -> None:
    name, _, tree = module
    assert rooms(tree) - {"__init__"} <= allowed_rooms(name)


def test_imports_are_absolute_and_on_top(module: tuple[str, Path, ast.Module]) -> None:
    _, _, tree = module
    assert not [imported for imported in imports(tree) if imported.startswith(".")]
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            assert not list(imports(function)), f"import inside {function.name}"


def test_torch_stays_out_of_the_light_rooms(module: tuple[str, Path, ast.Module]) -> None:
    name, _, tree = module
    is_light = name.split(".")[0] == "serve" and not name.startswith(TORCH_OF_SERVE)
    if is_light or name.split(".")[0] in WITHOUT_TORCH:
        assert not {i.split(".")[0] for i in imports(tree)} & {"torch", "transformers"}


def test_everything_public_says_what_it_is(module: tuple[str, Path, ast.Module]) -> None:
    name, _, tree = module
    if name != "__main__":
        assert ast.get_docstring(tree), "the module"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


def test_files_and_functions_stay_short(module: tuple[str, Path, ast.Module]) -> None:
    _, path, tree = module
    assert len(path.read_text("utf-8").splitlines()) <= 400
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


@pytest.mark.parametrize("name", [n for n in FILES if n.endswith("__init__")])
def test_public_names_exist(name: str) -> None:
    package = importlib.import_module(f"lightstride.{name}".removesuffix(".__init__"))
    public = getattr(package, "__all__", [])
    assert len(public) == len(set(public))
    assert all(hasattr(package, each) for each in public)


def test_every_room_is_in_the_table() -> None:
    assert {name.split(".")[0] for name in FILES} <= {*ALLOWED, "cli", "__main__"}


def assert_no_cycle(below: Mapping[str, set[str]]) -> None:
    """Everything can be drawn above what it needs."""
    done: set[str] = set()
    while len(done) < len(below):
        ready = {one for one, needs in below.items() if needs <= done} - done
        assert ready, f"a cycle among {sorted(set(below) - done)}"
        done |= ready


def imported_modules(path: Path) -> set[str]:
    """The files of this package that one of them imports, without its `__init__` files."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("lightstride.") for name in found} & set(FILES)


def test_the_table_has_no_cycle() -> None:
    assert_no_cycle(ALLOWED)


def test_parts_of_a_room_have_no_cycle() -> None:
    """A part is a folder in a room, or a file that lies beside such folders."""

    def part(name: str) -> str:
        return ".".join(name.split(".")[:2])

    below: dict[str, set[str]] = {}
    for name, path in FILES.items():
        if not name.endswith("__init__"):
            others = {part(other) for other in imported_modules(path)} - {part(name)}
            below.setdefault(part(name), set()).update(others)
    assert_no_cycle(below)


def block_of_design(start: str) -> list[str]:
    """The lines of the code block of `docs/design.md` that starts with this text."""
    _, _, rest = DESIGN.read_text("utf-8").partition(f"```\n{start}")
    assert rest, f"docs/design.md has no block that starts with {start!r}"
    return (start + rest.partition("```")[0]).splitlines()


def test_the_design_has_the_same_table() -> None:
    told = {}
    for line in block_of_design("errors "):
        room, _, below = line.partition("←")
        told[room.strip()] = set(re.sub(r"\(.*?\)", "", below).split())
    expected = {
        room: below for room, below in ALLOWED.items() if room not in ("__init__", "commands")
    }
    assert told == {**expected, "commands": {"everything"}}


def test_the_map_is_the_tree() -> None:
    """Every file beside the rooms, every room and every folder of code in one is on the map."""
    told, above = set(), ""
    for line in block_of_design("src/lightstride/\n")[1:]:
        found = re.match(r"( +)([\w.]+/?)(?:  |$)", line)
        if found is None:
            continue
        indent, name = found.groups()
        above = name if len(indent) == 2 and name.endswith("/") else above
        told.add(name if len(indent) == 2 else above + name)
    parts = [path.relative_to(ROOT) for path in FILES.values()]
    files = {str(path) for path in parts if len(path.parts) == 1}
    folders = {f"{path.parent}/" for path in parts if len(path.parts) in (2, 3)}
    assert told == (files | folders) - {"__init__.py", "__main__.py"}
