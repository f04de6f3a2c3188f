"""Text that every Python has: the pages of `help()`, cut into documents.

The topics of the language come first, one document each.  Some topics hold others whole, so a
paragraph that was seen in a shorter topic is left out of the longer one.  Then comes the standard
library, one document a module: its docstrings.
"""

import ast
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

MIN_PARAGRAPH = 60
"""Shorter paragraphs may repeat."""
MIN_DOCSTRING = 200
MIN_DOCUMENT = 1000
NOT_LIBRARY = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages"})


def topic_documents() -> list[str]:
    """The language's topics, the shortest first, each paragraph once."""
    seen: set[str] = set()
    documents = []
    for text in sorted(topics.values(), key=lambda text: (len(text), text)):
        paragraphs = [p for p in re.split(r"\n\s*\n", text) if " ".join(p.split()) not in seen]
        seen.update(w for p in paragraphs if len(w := " ".join(p.split())) >= MIN_PARAGRAPH)
        document = "\n\n".join(paragraphs)
        if len(document) >= MIN_PARAGRAPH:
            documents.append(document)
    return documents


def library_documents() -> Iterator[str]:
    """The longer docstrings of each module of the standard library, in the modules' order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if NOT_LIBRARY.isdisjoint(path.relative_to(root).parts):
            document = _docstrings(path)
            if len(document) >= MIN_DOCUMENT:
                yield document


def _docstrings(path: Path) -> str:
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # lib2to3 has files of an older Python
        return ""
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, holders))
    return "\n\n".join(text for text in found if text and len(text) >= MIN_DOCSTRING)
