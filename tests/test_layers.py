"""The direction of imports, as `docs/design/architecture.md` draws it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "modelyard"

FOUNDATION = {"errors", "digest", "points"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "digest": {"errors"},
    "points": set(),
    "derivations": FOUNDATION,
    "store": FOUNDATION,
    "catalog": FOUNDATION,
    "weights": FOUNDATION | {"derivations"},
    "registry": FOUNDATION | {"store", "catalog", "weights", "derivations"},
    "engine": FOUNDATION | {"weights"},
    "training": FOUNDATION | {"weights"},
    "evaluation": FOUNDATION | {"weights"},
    "publish": FOUNDATION | {"registry", "weights", "evaluation"},
    "recipes": FOUNDATION | {"registry", "training", "evaluation", "weights", "publish"},
    "hub": FOUNDATION | {"registry"},
    "web": FOUNDATION | {"registry", "evaluation"},
    "serving": FOUNDATION | {"registry", "engine", "weights"},
    "quickstart": FOUNDATION | {"registry", "recipes", "evaluation", "serving", "training", "weights"},
    "settings": FOUNDATION,
}
TOP = {"app", "cli", "__init__"}
HEAVY = {"torch", "transformers", "peft", "trl", "datasets", "accelerate", "pandas", "scipy"} | {
    *(
        "onnx",
        "onnxruntime",
        "onnxruntime_genai",
        "onnxscript",
        "openvino",
        "gguf",
        "torchao",
        "bitsandbytes",
        "llama_cpp",
    ),
}


def modules() -> list[tuple[str, Path]]:
    """Every module of the package with the name of the package or top-level module it belongs to."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        part = path.relative_to(SOURCE).parts[0]
        found.append((part.removesuffix(".py"), path))
    return found


def imported(tree: ast.AST) -> set[str]:
    """The parts of modelyard that a module imports anywhere, function bodies included."""
    parts: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "modelyard":
            names = node.module.split(".")[1:]
            parts.update([names[0]] if names else [alias.name for alias in node.names])
        elif isinstance(node, ast.Import):
            parts.update(alias.name.split(".")[1] for alias in node.names if alias.name.startswith("modelyard."))
    return parts


def at_import(tree: ast.Module) -> set[str]:
    """Top-level packages imported when the module is, `if TYPE_CHECKING` left out."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize(("part", "path"), modules(), ids=lambda value: str(value).removeprefix(str(SOURCE)))
def test_imports_point_down(part: str, path: Path) -> None:
    """A module imports only from its own package and from the ones below it."""
    if part in TOP:
        return
    allowed = MAY_IMPORT[part] | {part}
    assert imported(ast.parse(path.read_text("utf-8"))) - allowed == set()


@pytest.mark.parametrize(("part", "path"), modules(), ids=lambda value: str(value).removeprefix(str(SOURCE)))
def test_nothing_heavy_at_import(part: str, path: Path) -> None:
    """No module imports a heavy library at its top level."""
    assert at_import(ast.parse(path.read_text("utf-8"))) & HEAVY == set()
