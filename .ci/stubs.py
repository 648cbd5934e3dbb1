"""Make the wheel's type stubs of the single modules, which can carry no `py.typed` of their own.

A stub has a module's public names, and the names that those use, with signatures, docstrings and
constants, without bodies. `python .ci/stubs.py MODULE.py` prints it; hatchling calls StubHook when
it builds a wheel.
"""

from __future__ import annotations

import ast
import importlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODULES = {
    "power_manager": "power_manager.py",
    "power_collector": "integrations/collector/power_collector.py",
}

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_ELLIPSIS = ast.Expr(ast.Constant(...))


def make_stub(source: str) -> str:
    """The stub of a module with this source. Raises ValueError if it defines no `__all__`."""
    module = ast.parse(source)
    definitions = _definitions(module)
    if "__all__" not in definitions:
        raise ValueError("expected a module that defines __all__")
    public: list[str] = ast.literal_eval(_value_of(definitions["__all__"][0]))
    stubs: dict[int, ast.stmt] = {}  # of what is wanted, by the id of the statement
    open_names = ["__all__", "__version__", *public]
    while open_names:
        for node in definitions.pop(open_names.pop(), []):
            stubs[id(node)] = _stub(node)
            open_names += _names_in(stubs[id(node)])
    body: list[ast.stmt] = [ast.ImportFrom("__future__", [ast.alias("annotations")], 0)]
    body += [node for node in module.body if _is_import(node)]
    body += [stubs[id(node)] for node in module.body if id(node) in stubs]
    return ast.unparse(ast.fix_missing_locations(ast.Module(body, []))) + "\n"


def _is_import(node: ast.stmt) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module != "__future__"
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.Import)


def _definitions(module: ast.Module) -> dict[str, list[ast.stmt]]:
    """The statements at the module's top level that give a name its meaning, by that name."""
    found: dict[str, list[ast.stmt]] = {}
    for node in module.body:
        for name in _defined_by(node):
            found.setdefault(name, []).append(node)
    return found


def _defined_by(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        return [node.name]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def _value_of(node: ast.stmt) -> ast.expr:
    assert isinstance(node, (ast.Assign, ast.AnnAssign))
    assert node.value is not None
    return node.value


def _names_in(node: ast.stmt) -> Iterator[str]:
    """The names that a stub refers to, those in quoted annotations among them."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Constant) and str(part.value).isidentifier():
            yield str(part.value)


def _stub(node: ast.stmt) -> ast.stmt:
    """The statement as a type checker needs it."""
    if isinstance(node, ast.ClassDef):
        return _class_stub(node)
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return _function_stub(node)
    if isinstance(node, ast.AnnAssign) and not _is_alias(node):
        return ast.AnnAssign(node.target, node.annotation, None, node.simple)
    return node


def _is_alias(node: ast.AnnAssign) -> bool:
    return isinstance(node.annotation, ast.Name) and node.annotation.id == "TypeAlias"


def _function_stub(node: _Function) -> _Function:
    docstring = ast.get_docstring(node, clean=False)
    body: list[ast.stmt] = [] if docstring is None else [ast.Expr(ast.Constant(docstring))]
    stub = type(node)(
        name=node.name,
        args=node.args,
        body=[*body, _ELLIPSIS],
        decorator_list=node.decorator_list,
        returns=node.returns,
    )
    if sys.version_info >= (3, 12):
        stub.type_params = []
    return stub


def _class_stub(node: ast.ClassDef) -> ast.ClassDef:
    docstring = ast.get_docstring(node, clean=False)
    body: list[ast.stmt] = [] if docstring is None else [ast.Expr(ast.Constant(docstring))]
    for part in node.body:
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if part.name == "__init__":
                body += _attributes(part)
            if not part.name.startswith("_") or part.name.endswith("__"):
                body.append(_function_stub(part))
        elif any(not name.startswith("_") for name in _defined_by(part)):
            body.append(part)
    stub = ast.ClassDef(
        name=node.name,
        bases=node.bases,
        keywords=node.keywords,
        body=body or [_ELLIPSIS],
        decorator_list=node.decorator_list,
    )
    if sys.version_info >= (3, 12):
        stub.type_params = []
    return stub


def _attributes(initializer: _Function) -> Iterator[ast.stmt]:
    """The public attributes that `__init__` sets, with their types.

    Raises ValueError if the type of one is not plain to see.
    Plain is an annotation, a parameter's name, a constant, or the call of a class.
    """
    arguments = initializer.args
    annotations = {
        argument.arg: argument.annotation
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    }
    for node in initializer.body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)):
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if not isinstance(target, ast.Attribute) or target.attr.startswith("_"):
            continue
        if target.attr == "args":  # an exception's, which Exception declares
            continue
        annotation = getattr(node, "annotation", None) or _type_of(node.value, annotations)
        if annotation is None:
            raise ValueError(f"self.{target.attr}: say its type where __init__ sets it")
        yield ast.AnnAssign(ast.Name(target.attr), annotation, None, 1)


def _type_of(value: ast.expr | None, annotations: dict[str, ast.expr | None]) -> ast.expr | None:
    """The type of what an attribute is set to, where that can be told from here."""
    if isinstance(value, ast.Name):
        return annotations.get(value.id)
    if isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2].istitle():
        return value.func
    if isinstance(value, ast.Constant) and value.value is not None:
        return ast.Name(type(value.value).__name__)
    return None


def _hook_base() -> Any:
    """What hatchling's hooks are made of; where it is not installed, this is called by itself."""
    try:
        interface = importlib.import_module("hatchling.builders.hooks.plugin.interface")
    except ModuleNotFoundError:
        return object
    return interface.BuildHookInterface


class StubHook(_hook_base()):  # type: ignore[misc] # hatchling decides what it is
    """Puts the stubs into a wheel as packages MODULE-stubs, where type checkers look."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the stubs, and tell hatchling where they are."""
        self._folder = tempfile.TemporaryDirectory()
        for name, path in MODULES.items():
            stub = Path(self._folder.name, f"{name}.pyi")
            stub.write_text(make_stub(Path(self.root, path).read_text("utf-8")), "utf-8")
            # An editable installation has the stubs alone, and the tree itself on its path.
            for kind in ("force_include", "force_include_editable"):
                build_data[kind][str(stub)] = f"{name}-stubs/__init__.pyi"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what initialize() made."""
        self._folder.cleanup()


if __name__ == "__main__":
    print(make_stub(Path(sys.argv[1]).read_text("utf-8")), end="")
