"""`credit-service keys`."""

import re
import stat
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from tests.cli.ledgers import rows
from tests.commands import command

KEY = re.compile(r"^cs_([a-z2-7]{12})_([A-Za-z0-9_-]{43})\n$")

pytestmark = pytest.mark.usefixtures("on_each_engine")


def _database(folder: Path) -> Path:
    return folder / "credit-service.db"


@pytest.mark.parametrize("scope", ["read", "write", "admin"])
def test_a_new_key_stands_alone_on_standard_output(scope: str, tmp_path: Path) -> None:
    ran = command("keys", "create", "--name", "the till", "--scope", scope, cwd=tmp_path)
    match = KEY.match(ran.out)
    assert match is not None
    assert (ran.code, ran.err) == (0, "")
    kept = rows(_database(tmp_path), "SELECT id, name, scope, secret_hash, expires_at FROM api_keys")
    assert kept == [(match[1], "the till", scope, sha256(match[2].encode()).digest(), None)]


def test_the_key_itself_is_nowhere_in_the_database(tmp_path: Path) -> None:
    secret = command("keys", "create", "--name", "n", "--scope", "read", cwd=tmp_path).out.strip()[-43:]
    assert all(
        secret.encode() not in path.read_bytes() for path in tmp_path.iterdir() if stat.S_ISREG(path.stat().st_mode)
    )


def test_a_key_may_expire(tmp_path: Path) -> None:
    at = (datetime.now(UTC) + timedelta(days=1)).isoformat(timespec="seconds")
    ran = command("keys", "create", "--name", "n", "--scope", "read", "--expires-at", at, cwd=tmp_path)
    assert ran.code == 0
    [(expires_at,)] = rows(_database(tmp_path), "SELECT expires_at FROM api_keys")
    assert expires_at == int(datetime.fromisoformat(at).timestamp()) * 1_000_000


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--expires-at", "tomorrow", "--expires-at: Must be a time with its zone (RFC 3339)"),
        ("--expires-at", "2027-01-01T00:00:00", "--expires-at: Must be a time with its zone (RFC 3339)"),
        ("--expires-at", "2027-02-30T00:00:00Z", "--expires-at: There is no such time."),
        ("--expires-at", "2020-01-01T00:00:00Z", "--expires-at lies in the past."),
        ("--name", "", "--name: a name has 1 to 100 characters."),
        ("--name", "n" * 101, "--name: a name has 1 to 100 characters."),
    ],
)
def test_a_key_that_cannot_be_is_refused_in_one_line(option: str, value: str, said: str, tmp_path: Path) -> None:
    ran = command("keys", "create", "--name", "n", "--scope", "read", option, value, cwd=tmp_path)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith(f"credit-service: {said}")


def test_keys_are_listed_newest_first_without_their_secrets(tmp_path: Path) -> None:
    first = command("keys", "create", "--name", "first", "--scope", "read", cwd=tmp_path).out.strip()
    second = command(
        *("keys", "create", "--name", "second", "--scope", "admin", "--expires-at", "2100-01-01T00:00:00Z"),
        cwd=tmp_path,
    ).out.strip()
    command("keys", "revoke", first[3:15], cwd=tmp_path)
    ran = command("keys", "list", "--json", cwd=tmp_path)
    assert ran.code == 0
    assert [(key["id"], key["name"], key["scope"], key["expires_at"]) for key in ran.json] == [
        (second[3:15], "second", "admin", "2100-01-01T00:00:00.000000Z"),
        (first[3:15], "first", "read", None),
    ]
    assert [key["revoked_at"] is None for key in ran.json] == [True, False]
    assert set(ran.json[0]) == {"id", "name", "scope", "created_at", "expires_at", "revoked_at", "last_used_at"}
    readable = command("keys", "list", cwd=tmp_path).out
    assert re.search(
        rf"^{second[3:15]}  admin  \S+  expires 2100-01-01T00:00:00.000000Z  second$", readable, re.MULTILINE
    )
    assert re.search(rf"^{first[3:15]}  read   \S+  revoked  first$", readable, re.MULTILINE)
    assert second[-43:] not in ran.out + readable


def test_a_key_is_revoked_by_its_id(tmp_path: Path) -> None:
    id_ = command("keys", "create", "--name", "n", "--scope", "read", cwd=tmp_path).out[3:15]
    ran = command("keys", "revoke", id_, cwd=tmp_path)
    assert (ran.code, ran.out, ran.err) == (0, f"{id_} is revoked.\n", "")
    assert command("keys", "revoke", id_, cwd=tmp_path).code == 0, "a second time changes nothing"


def test_an_unknown_key_cannot_be_revoked(tmp_path: Path) -> None:
    command("migrate", cwd=tmp_path)
    ran = command("keys", "revoke", "aaaaaaaaaaaa", cwd=tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "credit-service: aaaaaaaaaaaa: there is no API key of this id.\n"
