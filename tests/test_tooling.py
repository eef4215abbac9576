"""The tools of the repository: the Makefile, scripts/uv, and the import rule that import-linter cannot express."""

import ast
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEDGER = ROOT / "src" / "credit_service" / "ledger"

# The ledger may import these modules of the standard library. None of them does I/O, reads a clock, is random or waits.
PURE_MODULES = {
    "bisect",
    "collections",
    "dataclasses",
    "datetime",
    "decimal",
    "enum",
    "functools",
    "hashlib",
    "heapq",
    "itertools",
    "json",
    "math",
    "operator",
    "re",
    "struct",
    "types",
    "typing",
    "uuid",
}
IMPURE_CALLS = {"now", "today", "utcnow", "uuid1", "uuid4"}


@pytest.mark.parametrize("path", sorted(LEDGER.glob("**/*.py")), ids=lambda path: path.stem)
def test_ledger_imports_only_itself_and_pure_standard_modules(path: Path) -> None:
    names = {name for name in _imports(path) if not name.startswith("credit_service.ledger")}
    assert {name.partition(".")[0] for name in names} <= PURE_MODULES


@pytest.mark.parametrize("path", sorted(LEDGER.glob("**/*.py")), ids=lambda path: path.stem)
def test_ledger_reads_no_clock_and_makes_no_random_id(path: Path) -> None:
    calls = {_called(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    assert calls & IMPURE_CALLS == set()


def test_make_lists_every_target_with_one_sentence() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    listed = dict(re.findall(r"^  make (\w+) +(.+)$", _run("make").stdout, re.MULTILINE))
    assert list(listed) == phony[1].split()
    assert all(sentence.endswith(".") for sentence in listed.values())


def test_script_uses_uv_on_path(machine: Path) -> None:
    _shim(machine, "uv", 'echo "uv was given $*"')
    assert _uv(machine, "sync").stdout == "uv was given sync\n"
    assert not (machine / ".uv").exists()


@pytest.mark.parametrize(
    ("python3", "complaint"),
    [
        (None, "no uv and no python3 found; install python3 (3.11 or newer) and python3-venv"),
        (
            '[ "$1" = --version ] && echo Python 3.9.2',
            "Python 3.9.2 is too old; install Python 3.11 or newer, or uv",
        ),
        (
            'case "$2" in *ensurepip*) exit 1;; esac',
            "this python3 has no venv; as root, run: apt-get install python3-venv",
        ),
    ],
    ids=["no python", "old python", "no venv"],
)
def test_script_names_missing_program_in_one_line(machine: Path, python3: str | None, complaint: str) -> None:
    if python3 is not None:
        _shim(machine, "python3", python3)
    _shim(machine, "id", "echo 1000")
    run = _uv(machine, "--version")
    assert (run.returncode, run.stdout, run.stderr) == (1, "", f"scripts/uv: {complaint}\n")
    assert not (machine / ".uv").exists()


def test_script_installs_missing_venv_for_root_and_says_so(machine: Path) -> None:
    _shim(machine, "id", "echo 0")
    _shim(machine, "apt-get", 'cd "${0%/*}"; echo "$*" >> asked; [ "$2" != install ] || touch has-venv')
    _shim(machine, "python3", 'case "$2" in *ensurepip*) [ -e "${0%/*}/has-venv" ];; esac')
    run = _uv(machine, "--version")
    assert "scripts/uv: this python3 has no venv; installing it: apt-get install python3-venv\n" in run.stderr
    assert (machine / "bin" / "asked").read_text() == "-qq update\n-qq install --no-install-recommends python3-venv\n"


def test_failed_download_of_uv_leaves_no_files(machine: Path) -> None:
    _shim(machine, "python3", 'if [ "$2" = venv ]; then mkdir "$3/half-made"; exit 1; fi')
    run = _uv(machine, "--version")
    assert run.returncode == 1
    assert "could not fetch uv" in run.stderr
    assert list((machine / ".uv").iterdir()) == []


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Return a folder with a copy of scripts/uv and the basic tools of Debian, without python3 and uv."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "uv", tmp_path / "scripts")
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "dirname", "mkdir", "mktemp", "rm", "mv", "touch", "id"):
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / "bin" / tool).symlink_to(found)
    return tmp_path


def _shim(machine: Path, name: str, script: str) -> None:
    path = machine / "bin" / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def _uv(machine: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return _run(str(machine / "scripts" / "uv"), *arguments, PATH=str(machine / "bin"), UV_CACHE_DIR=str(machine))


def _run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=60)


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1, "the ledger imports nothing from above it"
            if node.level == 0:
                yield node.module or ""


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
