"""Help, and wrong command lines: exit code 2 and one readable line on standard error."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from credit_service.cli import app
from tests.commands import command
from tests.served import reaped, start

WITHOUT_DATABASE = ["events tail"]
"""The commands that need a running service only."""
WITH_DATABASE = [
    "serve",
    "migrate",
    "keys create",
    "keys list",
    "keys revoke",
    "replay",
    "events reconcile",
    "dead-letters list",
    "dead-letters show",
    "dead-letters replay",
    "parked list",
    "verify",
    "backup",
    "erase",
    "config",
    "doctor",
]
COMMANDS = [*WITH_DATABASE, *WITHOUT_DATABASE]
GROUP: Any = typer.main.get_command(app)


def _all(group: Any = GROUP, *path: str) -> Iterator[tuple[str, Any]]:
    for name, found in group.commands.items():
        if hasattr(found, "commands"):
            yield from _all(found, *path, name)
        else:
            yield " ".join([*path, name]), found


def test_these_commands_exist() -> None:
    assert sorted(name for name, _ in _all()) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_documents_the_command_and_every_option(name: str, tmp_path: Path) -> None:
    ran = command(*name.split(), "--help", cwd=tmp_path)
    assert (ran.code, ran.err) == (0, "")
    found = dict(_all())[name]
    assert found.help
    assert found.help.split("\n")[0] in " ".join(ran.out.split())
    for parameter in found.params:
        assert getattr(parameter, "help", None), f"{parameter.name} is not documented"
        shown = parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar
        assert shown in ran.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_needs_a_database_has_its_option(name: str) -> None:
    options = [option for parameter in dict(_all())[name].params for option in parameter.opts]
    assert ("--database-url" in options) == (name in WITH_DATABASE)


def test_help_does_not_import_the_server() -> None:
    heavy = ["fastapi", "pydantic", "sqlalchemy", "uvicorn", "httpx2", "rich", "msgspec"]
    code = f"import sys, credit_service.cli; print([name for name in {heavy} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_help_is_shown_without_a_command(tmp_path: Path) -> None:
    ran = command(cwd=tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert "Usage: credit-service" in ran.err


def test_version_is_printed(tmp_path: Path) -> None:
    ran = command("--version", cwd=tmp_path)
    assert ran.code == 0
    assert ran.out.startswith("credit-service 0.")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("bogus", "No such command 'bogus'. See credit-service --help."),
        ("verfy", "No such command 'verfy'. Did you mean 'verify'? See credit-service --help."),
        ("--bogus", "No such option: --bogus. See credit-service --help."),
        ("serve --nonsense", "No such option: --nonsense. See credit-service serve --help."),
        ("serve extra", "Got unexpected extra argument(s) (extra). See credit-service serve --help."),
        ("serve --port", "Option '--port' requires an argument. See credit-service --help."),
        ("keys", "Missing command. See credit-service keys --help."),
        ("keys create --scope read", "Missing option '--name'. See credit-service keys create --help."),
        (
            "keys create --name n --scope root",
            "Invalid value for '--scope': 'root' is not one of 'status', 'read', 'write', 'admin'. "
            "See credit-service keys create --help.",
        ),
        ("keys revoke", "Missing argument 'ID'. See credit-service keys revoke --help."),
        ("replay", "Missing argument 'FILE'. See credit-service replay --help."),
        ("replay nothing.csv", "nothing.csv cannot be read: No such file or directory."),
        ("replay .", ". cannot be read: Is a directory."),
        (
            "replay nothing.csv --url http://x",
            "An API key is needed: --key, or CREDIT_SERVICE_KEY in the environment.",
        ),
        ("replay nothing.csv --url http://x --key ключ", "--key: this is no API key."),
        (
            "replay nothing.csv --url http://x --key k --database-url sqlite:///x.db",
            "--url and --database-url: say one of them.",
        ),
        ("verify", "credit-service.db holds no ledger; credit-service serve or migrate makes one."),
        (
            "verify --database-url sqlite:///other.db",
            "other.db holds no ledger; credit-service serve or migrate makes one.",
        ),
        ("keys list", "credit-service.db holds no ledger; credit-service serve or migrate makes one."),
        ("keys revoke abc", "credit-service.db holds no ledger; credit-service serve or migrate makes one."),
        (
            "migrate --database-url mysql://somebody:secret@host/db",
            "DATABASE_URL: must be the URL of an SQLite file, like sqlite:///credit-service.db, or of a PostgreSQL "
            "database, like postgresql://user:password@host:5432/credits (special characters of the password written "
            "as %40).",
        ),
        ("serve --workers 2", "--workers 2: an SQLite ledger has one serving process."),
        ("serve --port 70000", "SERVICE_PORT: Input should be less than or equal to 65535."),
    ],
)
def test_wrong_command_line_is_refused_in_one_line(asked: str, said: str, tmp_path: Path) -> None:
    ran = command(*asked.split(), cwd=tmp_path)
    assert (ran.code, ran.out, ran.err) == (2, "", f"credit-service: {said}\n")
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


@pytest.mark.parametrize("asked", ["verify --merchant", "erase"])
def test_merchant_must_be_an_id(asked: str, tmp_path: Path) -> None:
    ran = command(*asked.split(), "a/b", cwd=tmp_path)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith("credit-service: a/b is no merchant's id: Must have 1 to 64 letters")


@pytest.mark.parametrize("asked", ["migrate", "keys list", "verify", "replay events.jsonl"])
def test_file_that_is_no_database_is_refused_in_one_line(asked: str, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").touch()
    (tmp_path / "notes.txt").write_text("These are notes, long enough to be taken for a header of a database. " * 3)
    ran = command(*asked.split(), cwd=tmp_path, DATABASE_URL="sqlite:///notes.txt")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "credit-service: notes.txt cannot be used: file is not a database.\n"


def test_failed_start_is_explained_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("These are notes, long enough to be taken for a header of a database. " * 3)
    arguments = ("serve", "--port", "0", "--database-url", "sqlite:///notes.txt")
    ran = start(*arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with reaped(ran):
        assert ran.communicate(timeout=60) == (
            "",
            "credit-service: notes.txt cannot be used: file is not a database.\n",
        )
        assert ran.returncode == 2


def test_port_in_use_is_refused_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = command("serve", "--port", str(port), cwd=tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"credit-service: 127.0.0.1:{port} cannot be listened on: Address already in use.\n"


def test_impossible_setting_is_named(tmp_path: Path) -> None:
    ran = command("migrate", cwd=tmp_path, TRIAL_CREDITS="many")
    assert ran.code == 2
    assert ran.err.startswith("credit-service: TRIAL_CREDITS: ")
    assert ran.err.count("\n") == 1


def test_unknown_name_in_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "credit-service.yaml").write_text("trial_credit: 5\n")
    ran = command("migrate", cwd=tmp_path)
    assert (ran.code, ran.err) == (
        2,
        "credit-service: trial_credit: there is no such setting (credit-service.yaml).\n",
    )


def test_python_m_runs_the_same_command() -> None:
    ran = subprocess.run([sys.executable, "-m", "credit_service", "bogus"], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr == "credit-service: No such command 'bogus'. See credit-service --help.\n"
