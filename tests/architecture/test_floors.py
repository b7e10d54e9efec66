"""Imports go down: every module and C file stands on a floor, and data passes through the tree one way."""

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "shmipc"
Floors = dict[str, Any]

# --- the checker -----------------------------------------------------------------------------------------------


def module_files(root: Path) -> dict[str, Path]:
    """Dotted name to file, of every module below the package; packages by their own name."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: set[str]) -> list[tuple[int, str]]:
    """Line and target of each import of our own; TYPE_CHECKING, local and import_module ones count."""
    targets: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            targets += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            targets.append((node.lineno, "." * node.level + (node.module or "")))
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            targets += [(node.lineno, name if name in known else node.module) for name in names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("import_module", "__import__"):
                targets.append((node.lineno, str(node.args[0].value)))
    return [(line, name) for line, name in targets if name.split(".")[0] in ("", PACKAGE)]


def python_faults(root: Path, floors: Floors) -> list[str]:
    files, native = module_files(root), floors["native"]
    heights: dict[str, int] = {}  # of each floor
    ranks: dict[str, tuple[int, int]] = {}  # of each module: height, place on its floor
    rules = {entry["floor"]: entry for entry in floors["python"]}
    for entry in floors["python"]:
        height = heights[entry["beside"]] if "beside" in entry else len(heights)
        heights[entry["floor"]] = height
        for place, module in enumerate(entry["modules"]):
            ranks[f"{PACKAGE}.{entry['floor']}.{module}"] = (height, place)

    faults = [f"{name}: listed in floors.toml, but there is no such file" for name in ranks if name not in files]
    for name, path in files.items():
        where = path.relative_to(root)
        if path.name in ("__init__.py", "__main__.py"):
            faults += [f"{where}:{line}: {what}" for line, what in package_faults(path, may_reexport(path, rules))]
            continue
        if name not in ranks:
            faults.append(f"{where}: not listed in floors.toml")
            continue
        for line, target in imported(path, set(files) | {native["module"]}):
            fault = import_fault(name, target, ranks, rules, heights, native)
            if fault:
                faults.append(f"{where}:{line}: imports {target}, {fault}")
    return faults


def import_fault(
    name: str,
    target: str,
    ranks: dict[str, tuple[int, int]],
    rules: dict[str, Any],
    heights: dict[str, int],
    native: dict[str, str],
) -> str | None:
    floor, height = name.split(".")[1], ranks[name][0]
    if target.startswith("."):
        return "which is relative: say the whole name"
    if target == native["module"]:
        return None if height >= heights[native["from"]] else f"allowed from {native['from']} up"
    if target not in ranks:
        return "which is not a listed module: name the module that defines it"
    other = target.split(".")[1]
    if other == floor and rules[floor].get("apart") and name.split(".")[2] != target.split(".")[2]:
        return f"but {floor} never import each other"
    if other != floor and heights[other] == height:
        return "which stands on the same height"
    if ranks[target] >= ranks[name]:
        return "which is a higher floor" if heights[other] > height else "which is not listed before it"
    return None


def may_reexport(path: Path, rules: dict[str, Any]) -> bool:
    """The root, and what is one module for others but several files: only on a floor whose modules stand apart."""
    return path.parent.name == PACKAGE or bool(rules.get(path.parent.parent.name, {}).get("apart"))


def package_faults(path: Path, may_import: bool) -> list[tuple[int, str]]:
    """An __init__.py re-exports, and only the root's and a facade's do even that; __main__.py calls."""
    faults = []
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            faults.append((node.lineno, f"defines {node.name}: packages only re-export"))
        elif isinstance(node, ast.ImportFrom) and node.level:
            faults.append((node.lineno, "relative import"))
        elif isinstance(node, ast.Import | ast.ImportFrom) and not may_import:
            faults.append((node.lineno, "a floor's __init__.py imports nothing"))
    return faults


def c_faults(root: Path, floors: Floors) -> list[str]:
    rule = floors["c"]
    native, order = root / rule["root"], {floor: height for height, floor in enumerate(rule["floors"])}
    faults, graph = [], {}
    for path in sorted(p for p in native.rglob("*") if p.suffix in (".c", ".h", ".pyx", ".pxd")):
        where, name = path.relative_to(root), path.relative_to(native)
        floor = name.parts[0]
        if floor in rule.get("beside", ()):
            continue
        if floor not in order:
            faults.append(f"{where}: {floor} is not a floor")
            continue
        if path.suffix in (".pyx", ".pxd"):
            faults += [f"{where}:{line}: {what}" for line, what in binding_faults(path, floors)]
            continue
        below = graph[name.as_posix()] = []
        for line, text in enumerate(path.read_text().splitlines(), 1):
            if re.match(r"\s*#\s*include\s*<Python\.h>", text) and floor != rule["python"]:
                faults.append(f"{where}:{line}: only {rule['python']} knows Python")
            match = re.match(r'\s*#\s*include\s*"([^"]+)"', text)
            if not match:
                continue
            if not (native / match[1]).is_file():
                faults.append(f"{where}:{line}: {match[1]} is no file of {rule['root']}/; includes start there")
            elif order[match[1].split("/")[0]] > order[floor]:
                faults.append(f"{where}:{line}: includes {match[1]}, which is a higher floor")
            else:
                below.append(match[1])
    return faults + [f"{rule['root']}/{name}: includes itself by way of others" for name in cyclic(graph)]


def binding_faults(path: Path, floors: Floors) -> list[tuple[int, str]]:
    """Cython cannot be parsed by ast; its imports of ours are one line each."""
    names = [entry["floor"] for entry in floors["python"]]
    below = names[: names.index(floors["native"]["from"])]
    faults = []
    for line, text in enumerate(path.read_text().splitlines(), 1):
        match = re.match(rf"\s*(?:from|import)\s+{PACKAGE}(?:\.(\w+))?", text)
        if match and match[1] not in below:
            faults.append((line, f"the binding imports only {', '.join(below)}"))
    return faults


def cyclic(graph: dict[str, list[str]]) -> list[str]:
    """Names that reach themselves."""

    def reached(name: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(graph[name])
        while waiting:
            if (other := waiting.pop()) not in seen:
                seen.add(other)
                waiting += graph.get(other, [])
        return seen

    return [name for name in graph if name in reached(name)]


# --- the tree --------------------------------------------------------------------------------------------------

FLOORS = tomllib.loads((Path(__file__).parent / "floors.toml").read_text())


def test_python_imports_go_down() -> None:
    assert python_faults(ROOT, FLOORS) == []


def test_c_includes_go_down() -> None:
    assert c_faults(ROOT, FLOORS) == []


@pytest.mark.parametrize(
    ("folder", "pattern"), [("native", "*/*.c"), ("native/models", "*.c"), ("tests/native", "test_*.c")]
)
def test_meson_lists_every_c_file(folder: str, pattern: str) -> None:
    listed = (ROOT / folder / "meson.build").read_text()
    files = [path.relative_to(ROOT / folder).as_posix() for path in (ROOT / folder).glob(pattern)]
    files = [name for name in files if name.split("/")[0] not in FLOORS["c"]["beside"]]
    assert [name for name in files if f"'{name}'" not in listed and f"'{name.removesuffix('.c')}'" not in listed] == []


# --- the checker itself ----------------------------------------------------------------------------------------

SAMPLE = tomllib.loads("""
native = { module = "shmipc._native", from = "memory" }
python = [
    { floor = "base", modules = ["errors", "limits"] },
    { floor = "memory", modules = ["arrays"] },
    { floor = "facades", modules = ["chorus", "ratos.ports", "ratos.tags"], apart = true },
    { floor = "interop", modules = ["queue"], beside = "facades" },
    { floor = "tools", modules = ["cli"] },
]
c = { root = "native", floors = ["base", "memory", "binding"], python = "binding" }
""")

GOOD = {
    "shmipc/__init__.py": "from shmipc.base.errors import A as A\nfrom shmipc.tools.cli import main\n",
    "shmipc/__main__.py": "from shmipc.tools.cli import main\nraise SystemExit(main())\n",
    "shmipc/base/__init__.py": "",
    "shmipc/base/errors.py": "import os\nA = 1\n",
    "shmipc/base/limits.py": "from shmipc.base import errors\n",
    "shmipc/memory/arrays.py": "import shmipc.base.errors\nimport shmipc.base.limits\nfrom shmipc import _native",
    "shmipc/facades/chorus.py": "import shmipc.memory.arrays as arrays\n",
    "shmipc/facades/ratos/__init__.py": "from shmipc.facades.ratos.ports import x as x\n",
    "shmipc/facades/ratos/ports.py": "",
    "shmipc/facades/ratos/tags.py": "from shmipc.facades.ratos.ports import x\n",
    "shmipc/interop/queue.py": "from shmipc.memory.arrays import errors\n",
    "shmipc/tools/cli.py": "from shmipc.facades.chorus import x\nfrom shmipc._native import y\n",
    "native/base/clock.h": "#include <time.h>\n",
    "native/base/clock.c": '#include "base/clock.h"\n',
    "native/memory/ring.c": '#include "base/clock.h"\n',
    "native/binding/glue.h": '#include <Python.h>\n#include "base/clock.h"\n',
    "native/binding/_native.pyx": "from shmipc.base.errors import A\nfrom libc.stdint cimport uint64_t\n",
}


def grow(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_checker_accepts_imports_that_go_down(tmp_path: Path) -> None:
    grow(tmp_path, GOOD)
    assert python_faults(tmp_path, SAMPLE) + c_faults(tmp_path, SAMPLE) == []


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("shmipc/base/errors.py", "from shmipc.memory.arrays import x", "higher floor"),
        ("shmipc/base/errors.py", "import shmipc.base.limits", "not listed before it"),
        ("shmipc/base/errors.py", "import shmipc.base.errors", "not listed before it"),
        ("shmipc/base/errors.py", "import shmipc._native", "allowed from memory up"),
        ("shmipc/base/errors.py", "from shmipc import _native", "allowed from memory up"),
        ("shmipc/memory/arrays.py", "from ..base import errors", "relative"),
        ("shmipc/memory/arrays.py", "from . import x", "relative"),
        ("shmipc/memory/arrays.py", "import shmipc", "name the module that defines it"),
        ("shmipc/memory/arrays.py", "from shmipc import A", "name the module that defines it"),
        ("shmipc/memory/arrays.py", "from shmipc.base import A", "name the module that defines it"),
        ("shmipc/memory/arrays.py", "def f():\n    import shmipc.tools.cli", "higher floor"),
        ("shmipc/memory/arrays.py", "if TYPE_CHECKING:\n    from shmipc.tools.cli import x", "higher floor"),
        ("shmipc/memory/arrays.py", "importlib.import_module('shmipc.tools.cli')", "higher floor"),
        ("shmipc/facades/chorus.py", "import shmipc.facades.ratos.ports", "never import each other"),
        ("shmipc/facades/ratos/ports.py", "import shmipc.facades.chorus", "never import each other"),
        ("shmipc/facades/ratos/ports.py", "import shmipc.facades.ratos.tags", "not listed before it"),
        ("shmipc/facades/chorus.py", "import shmipc.interop.queue", "same height"),
        ("shmipc/interop/queue.py", "import shmipc.facades.chorus", "same height"),
        ("shmipc/memory/extra.py", "", "not listed"),
        ("shmipc/loose.py", "", "not listed"),
        ("shmipc/__init__.py", "def f(): ...", "only re-export"),
        ("shmipc/__init__.py", "from .base import errors", "relative"),
        ("shmipc/base/__init__.py", "from shmipc.base.errors import A", "imports nothing"),
        ("native/base/clock.h", '#include "memory/ring.h"', "is no file of native/"),
        ("native/base/clock.h", '#include "binding/glue.h"', "higher floor"),
        ("native/memory/ring.c", "#include <Python.h>", "only binding knows Python"),
        ("native/base/clock.h", '#include "base/clock.h"', "by way of others"),
        ("native/extra/x.c", "", "is not a floor"),
        ("native/binding/_native.pyx", "from shmipc.memory.arrays import x", "the binding imports only base"),
    ],
)
def test_checker_names_the_file_that_breaks_the_rule(tmp_path: Path, name: str, text: str, fault: str) -> None:
    grow(tmp_path, GOOD | {name: text})
    faults = python_faults(tmp_path, SAMPLE) + c_faults(tmp_path, SAMPLE)
    assert len(faults) == 1
    assert faults[0].startswith(name)
    assert fault in faults[0]


def test_checker_names_a_listed_module_that_does_not_exist(tmp_path: Path) -> None:
    grow(tmp_path, {name: text for name, text in GOOD.items() if name != "shmipc/base/limits.py"})
    assert any("shmipc.base.limits: listed" in fault for fault in python_faults(tmp_path, SAMPLE))
