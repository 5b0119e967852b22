"""SGLang's storage interface out of its wheel, without the two gigabytes that the engine itself would need.

`make test-sglang` unpacks the wheel. The package's own `__init__` imports the whole engine; the modules of the interface
need torch alone, so the package stands here as an empty one with the same folder.
"""

import ast
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

VERSION = "0.5.23"
FOLDER = Path(__file__).resolve().parents[2] / ".cache" / f"sglang-{VERSION}" / "sglang"


def load() -> None:
    """Make `sglang.srt.mem_cache.hicache_storage` and the factory of backends importable."""
    if "sglang" not in sys.modules:
        package = types.ModuleType("sglang")
        package.__path__ = [str(FOLDER)]  # type: ignore[attr-defined]
        package.__version__ = VERSION  # type: ignore[attr-defined]
        sys.modules["sglang"] = package


def methods_of(path: str, kind: str, names: set[str]) -> dict[str, Any]:
    """Return methods of one of SGLang's classes, whose module needs a GPU's compiler to be imported."""
    import torch

    tree = ast.parse((FOLDER / path).read_text(encoding="utf-8"))
    (found,) = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == kind]
    functions = [node for node in found.body if isinstance(node, ast.FunctionDef) and node.name in names]
    assert {node.name for node in functions} == names
    scope: dict[str, Any] = {"torch": torch}
    for function in functions:
        function.returns = None
        for argument in function.args.args:
            argument.annotation = None
        exec(compile(textwrap.dedent(ast.unparse(function)), path, "exec"), scope)  # SGLang's own source
    return {name: scope[name] for name in names}
