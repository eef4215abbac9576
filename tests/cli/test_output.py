"""The output of the commands: texts from a ledger or a file cannot control the terminal."""

import ast
import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from credit_service import cli
from credit_service.storage.letters import Letters, Undeliverable
from credit_service.terminal import printable
from tests.cli.ledgers import placed
from tests.commands import Ran, command
from tests.ledger.telling import T0
from tests.storage.engines import opened

HOSTILE = "a\x1b[2J\x1b]0;title\x07\r\nBAD  database\x9b31m\u202eb\u2028"
ESCAPED = "a\\x1b[2J\\x1b]0;title\\x07\\r\\nBAD  database\\x9b31m\\u202eb\\u2028"


def is_harmless(*texts: str) -> bool:
    """Return whether the texts contain no control characters except line feeds."""
    return all(line.isprintable() for text in texts for line in text.split("\n"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (HOSTILE, ESCAPED),
        ("Für alle €, 日本", "Für alle €, 日本"),
        ("\ud800\x00\x7f\u200b\u00a0\t", "\\ud800\\x00\\x7f\\u200b\\xa0\\t"),
        ("", ""),
    ],
)
def test_control_characters_become_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.fixture
def ledger(new_ledger: Callable[[], str], tmp_path: Path) -> Path:
    """A folder whose ledger holds hostile texts."""
    url = new_ledger()
    placed(tmp_path, url)
    events = [json.dumps({"type": HOSTILE}, ensure_ascii=False).encode(), HOSTILE.encode(), b"\xff\x1b[2J\n"]

    async def fill() -> None:
        store = opened(url)
        try:
            letters = [
                Undeliverable(HOSTILE, event, "validation_failed", HOSTILE, T0 + n) for n, event in enumerate(events)
            ]
            await Letters(store).put_aside(letters)
        finally:
            await store.close()

    asyncio.run(fill())
    assert command("keys", "create", "--name", HOSTILE, "--scope", "read", cwd=tmp_path).code == 0
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ("dead-letters", "list"),
        ("dead-letters", "show", "1"),
        ("dead-letters", "show", "2"),
        ("dead-letters", "show", "3"),
        ("dead-letters", "replay", "--all"),
        ("keys", "list"),
        ("keys", "revoke", HOSTILE),
        ("config",),
        ("verify", "--database-url", f"sqlite:///{HOSTILE}"),
        ("replay", HOSTILE),
        ("replay", "hostile.csv"),
        ("replay", "hostile.jsonl"),
        ("keys", "create", "--name", "x", "--scope", HOSTILE),
        (HOSTILE,),
    ],
    ids=range(14),
)
def test_texts_of_a_ledger_or_a_file_are_escaped(arguments: tuple[str, ...], ledger: Path) -> None:
    row = f'"{HOSTILE[:5]}",x,2026-01-01T00:00:00Z,1,"\x1b[2J\x9b"\n'
    (ledger / "hostile.csv").write_text(f"invoice,customer_id,timestamp,total,kind\n{row}")
    (ledger / "hostile.jsonl").write_text('{"type": "\x9b\u202e", "specversion": "\\u001b"}\n')
    ran = command(*arguments, cwd=ledger, SHOPIFY_PLAN_CREDITS=json.dumps({HOSTILE: 1}))
    assert is_harmless(ran.out, ran.err)
    assert len(f"{ran.out}{ran.err}") > 20


def test_json_output_keeps_texts_unchanged(ledger: Path) -> None:
    def run(*arguments: str) -> Ran:
        return command(*arguments, "--json", cwd=ledger)

    assert {one["reason"] for one in run("dead-letters", "list").json} == {HOSTILE}
    assert [key["name"] for key in run("keys", "list").json] == [HOSTILE]


def test_commands_print_only_through_escaping_functions() -> None:
    folder = Path(cli.__file__).parent
    for file in sorted(set(folder.glob("*.py")) - {folder / "common.py", folder / "__init__.py"}):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "typer.echo", "sys.stdout.write"):
                # `events tail --json` prints the JSON of the service unchanged.
                assert (file.name, ast.unparse(node)) == ("events.py", "typer.echo(event)")
