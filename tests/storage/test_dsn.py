"""The URL of a PostgreSQL database: its options, and the arguments for the driver."""

from typing import Any

import pytest

from credit_service.storage import dsn

SEVERAL = "postgresql://u:p%40ss@h1,h2:5433/credits"


@pytest.mark.parametrize(
    ("url", "name", "hosts"),
    [
        ("postgresql://u:p@h:5432/credits", "PostgreSQL h:5432/credits", [("h", 5432)]),
        ("postgresql://[::1]:1/d%20b", "PostgreSQL [::1]:1/d b", [("::1", 1)]),
        ("postgresql:///credits", "PostgreSQL local/credits", [(None, None)]),
        ("postgresql:///credits?port=5433", "PostgreSQL local:5433/credits", [(None, 5433)]),
        ("postgresql:///credits?host=/run/pg&port=1", "PostgreSQL /run/pg:1/credits", [("/run/pg", 1)]),
        ("postgresql://%2Frun%2Fpg/credits", "PostgreSQL /run/pg/credits", [("/run/pg", None)]),
        (SEVERAL, "PostgreSQL h1,h2:5433/credits", [("h1", None), ("h2", 5433)]),
        ("postgresql://h1,h2/credits?port=1", "PostgreSQL h1,h2:1/credits", [("h1", 1), ("h2", 1)]),
        ("postgresql:///credits?host=h1,h2&port=1,2", "PostgreSQL h1,h2:1,2/credits", [("h1", 1), ("h2", 2)]),
    ],
)
def test_hosts_are_read_from_every_part_of_the_url(url: str, name: str, hosts: list[Any]) -> None:
    found = dsn.parse(url)
    assert found.name == name
    assert [(attempt["host"], attempt["port"]) for attempt in found.attempts] == hosts
    assert "p%40ss" not in repr(found)


def test_several_hosts_mean_primary_unless_url_overrides() -> None:
    wanted = {"target_session_attrs": "primary"}
    assert dsn.parse(SEVERAL).attempts == [
        {"host": "h1", "port": None} | wanted,
        {"host": "h2", "port": 5433} | wanted,
    ]
    assert dsn.parse(f"{SEVERAL}?target_session_attrs=any").attempts[0] == {"host": "h1", "port": None}
    assert dsn.parse("postgresql://h/db").attempts == [{"host": "h", "port": None}]


def test_driver_reads_its_own_options() -> None:
    found = dsn.parse("postgresql://u:p%40@h:1/db?connect_timeout=3&application_name=a%20b&sslmode=disable")
    assert found.url == "postgresql://u:p%40@/db?application_name=a%20b&sslmode=disable"
    assert found.connect_seconds == 3


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("h/db?channel_binding=require", "has the option channel_binding, which is not supported"),
        ("h/db?search_path=x", "(settings of the server are written like options=-c%20search_path=credits)"),
        ("h/db?Hunter2=x", "has the option whose name is no word, which is not supported"),
        ("h/db?hunter2", "has an option that is not written as name=value"),
        ("h/db?sslmode=on", "has the option sslmode, which must be one of disable, allow, prefer, require, verify-ca"),
        ("h/db?target_session_attrs=standby", "must be one of any, primary, read-write"),
        ("h/db?connect_timeout=0", "must be whole seconds from 1 to 9999"),
        ("h/db?connect_timeout=soon", "must be whole seconds from 1 to 9999"),
        ("h/db?sslmode=require&sslmode=require", "says the option sslmode twice"),
        ("u:p@h/db?password=x", "says the password twice"),
        ("u@h/db?user=x", "says the user twice"),
        ("h/db?host=x", "says the host twice"),
        ("h:1/db?port=2", "says the port twice"),
        ("h/db?port=x", "has the option port, which must be the number of a port"),
        ("h1,h2,h3/db?port=1,2", "must have one port for all hosts, or one for each"),
        ("h:65536/db", "has a port above 65535"),
        ("h", "must be a URL like postgresql://"),
    ],
)
def test_unsupported_options_are_refused_by_name(rest: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^(has|says|must) ") as error:
        dsn.parse(f"postgresql://{rest}")
    assert said in str(error.value)
    assert "hunter2" not in str(error.value).lower()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///credit-service.db", "sqlite:///credit-service.db"),
        ("", ""),
        ("postgresql://user:hunter2@host:5432/db", "postgresql://user:***@host:5432/db"),
        ("postgresql://u:hunter2@h1,h2:1/db?sslmode=disable", "postgresql://u:***@h1,h2:1/db?sslmode=disable"),
        ("postgresql://u@host/db?password=hunter2&sslmode=on", "postgresql://u@host/db?password=masked&sslmode=on"),
        ("postgresql://u@host/db?sslpassword=hunter2", "postgresql://u@host/db?sslpassword=masked"),
        ("redis://:hunter2@h/0", "redis://:***@h/0"),
        ("rediss://u:hunter2@h?ssl_password=hunter2", "rediss://u:***@h?ssl_password=masked"),
    ],
)
def test_passwords_are_masked_in_every_part_of_the_url(url: str, shown: str) -> None:
    assert dsn.masked(url) == shown
