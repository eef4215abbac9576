"""Only a few modules use private names of libraries, and pyproject.toml pins these libraries to a minor version."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "credit_service"
PRIVATE = re.compile(r"_[a-z]\w*")
PUBLIC_DESPITE_THEIR_NAMES = {"_replace", "_make", "_fields", "_asdict"}  # documented methods of named tuples
KNOWN = {
    "broker.py": {"_flush_pending", "_send_command", "_transport"},
}
"""The private attributes of nats-py that each module uses. nats-py has no public API for these tasks."""
INSIDES = {"doors/http/protocol.py": ("httptools", "uvicorn")}
"""Modules that depend on the internals of a library without its private names."""
PINNED = {"httptools": "0.9", "nats-py": "2.16", "uvicorn": "0.54"}


def test_only_known_modules_use_private_names() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py")}
    own = {name for tree in trees.values() for name in defined(tree)}
    found: dict[str, set[str]] = {}
    for path, tree in trees.items():
        for name in used(tree) - own - PUBLIC_DESPITE_THEIR_NAMES:
            found.setdefault(path.relative_to(SOURCE).as_posix(), set()).add(name)
    assert found == KNOWN


def test_only_the_protocol_module_imports_uvicorn_protocols() -> None:
    importing = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if re.search(r"^\s*(?:from|import) (?:uvicorn\.protocols|httptools)", path.read_text("utf-8"), re.MULTILINE)
    }
    assert importing == set(INSIDES)


def test_libraries_with_private_names_are_pinned_to_a_minor_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {Requirement(line).name: Requirement(line).specifier for line in project["dependencies"]}
    for library, minor in PINNED.items():
        major, _, least = minor.partition(".")
        after = Version(f"{major}.{int(least) + 1}")
        assert required[library].contains(f"{minor}.0")
        assert not required[library].contains(after), f"{library} may become {after}: read its internals again first"


def defined(tree: ast.Module) -> Iterator[str]:
    """Yield the names that our code defines: functions, attributes, slots and variables."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Attribute(attr=name, ctx=ast.Store()) | ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield name
            case ast.Constant(value=str(name)):
                yield name


def used(tree: ast.Module) -> set[str]:
    """Return the private names that the code reads as attributes."""
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and PRIVATE.fullmatch(node.attr)}
