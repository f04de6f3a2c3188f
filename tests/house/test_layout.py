"""Tests stand where the module that they test stands, and are as short."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import lightstride

SOURCE = Path(lightstride.__file__).parent
TESTS = Path(__file__).parents[1]
BENCHMARKS = TESTS.parent / "benchmarks"

# Tests of what many modules do together, each in the room that it is about most.
FEATURES = {
    "commands/pruning/test_two_nodes.py",
    "commands/test_prune_resume.py",
    "models/opening/test_no_code.py",
    "prune/test_no_attention.py",
    "search/test_toy_space.py",
    "smash/decode/test_session.py",
    "test_old_files.py",
}
# Folders and modules that are tested through another test than their own.
TESTED_BY = {
    "announce.py": "models/uneven/test_register.py",
    "commands/": "commands/test_prune.py",
    "commands/evaluating/": "commands/test_evaluate.py",
    "commands/pruning/": "commands/test_prune.py",
    "commands/recovering/": "commands/test_recover.py",
    "commands/smashing/": "commands/test_smash.py",
    "config/": "config/test_base.py",
    "data/records.py": "data/test_documents.py",
    "evaluate/tables.py": "commands/test_evaluate.py",
    "export/": "export/test_decilm.py",
    "export/gguf/": "export/gguf/test_write.py",
    "generate/": "generate/test_decoder.py",
    "memory/": "memory/test_cache.py",
    "memory/held/": "memory/test_cache.py",
    "models/": "models/opening/test_load.py",
    "models/families/": "models/families/test_adapter.py",
    "models/opening/explain.py": "models/opening/test_load.py",
    "prune/cut/": "prune/cut/test_statistics.py",
    "recover/": "recover/test_loop.py",
    "serve/": "serve/test_http.py",
    "serve/api/": "serve/test_http.py",
    "serve/engine/": "serve/test_engine.py",
    "serve/schemas/": "serve/test_chat.py",
    "smash/drafters/levels.py": "smash/drafters/test_micro_tree.py",
    "smash/drafters/micro_chain.py": "smash/decode/test_decoder.py",
    "smash/decode/": "smash/decode/test_decoder.py",
    "smash/model/headed.py": "commands/smashing/test_head.py",
    "smash/train/": "smash/train/test_loop.py",
    "training/": "smash/train/test_loop.py",
    "work.py": "commands/test_prune_resume.py",
}
# Names that mean the same kind of thing wherever they stand.
EVERYWHERE = {"LOG", "T", "VERSION"}


def files_of_tests() -> list[Path]:
    return sorted(path.relative_to(TESTS) for path in TESTS.rglob("test_*.py"))


@pytest.mark.parametrize(
    "path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS))
)
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 400


def test_every_test_file_is_named_after_a_module() -> None:
    strangers = set()
    for path in files_of_tests():
        module = path.with_name(path.name.removeprefix("test_"))
        room = path.parts[0]
        if room == "benchmarks":
            known = (BENCHMARKS / module.name).exists()
        else:
            known = (SOURCE / module).exists() or room in ("house", "serve", "fuzz", "crash")
        if not known:
            strangers.add(path.as_posix())
    assert strangers == FEATURES


def imported(path: Path) -> set[str]:
    """Modules of the package that a test imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_module_is_tested() -> None:
    """By a file of its name, by another of its folder that imports it, or as it is said above."""
    seen = defaultdict(set)
    for path in files_of_tests():
        seen[path.parent] |= imported(TESTS / path)
    untested = []
    for path in sorted(SOURCE.rglob("*.py")):
        module = path.relative_to(SOURCE)
        name = ".".join(("lightstride", *module.with_suffix("").parts))
        own = TESTS / module.with_name(f"test_{module.name}")
        if module.name.startswith("__") or own.exists() or name in seen[module.parent]:
            continue
        if not {module.as_posix(), f"{module.parent}/"} & set(TESTED_BY):
            untested.append(module.as_posix())
    assert not untested
    assert all((SOURCE / name).exists() for name in TESTED_BY)
    assert all((TESTS / path).exists() for path in TESTED_BY.values())


def public_names(path: Path) -> set[str]:
    """Functions, classes and constants at the top of a module."""
    found: set[str] = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return {name for name in found if not name.startswith("_")}


def test_a_name_means_one_thing() -> None:
    """No name is defined in more than two modules."""
    places = defaultdict(list)
    for path in sorted(SOURCE.rglob("*.py")):
        for name in public_names(path) - EVERYWHERE:
            places[name].append(path.relative_to(SOURCE).as_posix())
    assert {name: found for name, found in places.items() if len(found) > 2} == {}


def test_the_readme_is_short() -> None:
    assert len((TESTS.parent / "README.md").read_text("utf-8").splitlines()) <= 150
