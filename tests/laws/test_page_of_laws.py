"""docs/laws.md names a rule and its tests for each law; both must exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEDGER = ROOT / "src" / "credit_service" / "ledger"
SECTIONS = re.split(r"^## ", (ROOT / "docs" / "laws.md").read_text(), flags=re.MULTILINE)[1:]
SERVED = [section for section in SECTIONS if not section.startswith("L14 ")]


def test_the_page_has_the_laws_in_order() -> None:
    assert [section.split()[0] for section in SECTIONS] == [f"L{number}" for number in (*range(1, 16), 18, 19, 22)]


@pytest.mark.parametrize("section", SERVED, ids=lambda section: section.split()[0])
def test_the_page_names_existing_rules(section: str) -> None:
    rule = section[section.index("\nRule: ") : section.index("Proof:")]
    named = re.findall(r"`([^`]+)`", rule)
    assert named[0].endswith(".py")
    functions: set[str] = set()
    for name in named:
        if name.endswith(".py"):
            functions = _functions(LEDGER / name)
        else:
            assert name.rpartition(".")[2] in functions


@pytest.mark.parametrize("section", SERVED, ids=lambda section: section.split()[0])
def test_the_tests_of_each_law_have_its_number(section: str) -> None:
    law = section.split()[0]
    path = re.findall(r"`(tests/[^`]+)`", section[section.index("Proof:") :])[0]
    tests = {name for name in _functions(ROOT / path) if name.startswith("test_")}
    assert tests
    assert all(name.startswith(f"test_{law}_") for name in tests)


def _functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
