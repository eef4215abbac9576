"""The example .env files, one for each way to run the service: all names are settings, and all values are valid."""

import re
from pathlib import Path

import pytest

from credit_service.settings import Settings
from tests.commands import command
from tests.deploy.dockerfile import ROOT

EMBEDDED, POSTGRESQL, CONTAINERS = (
    ROOT / name for name in (".env.example", "deploy/postgresql.env.example", "deploy/.env.example")
)
COMPOSE = (ROOT / "deploy/compose.yaml").read_text()


def pairs(path: Path, *, commented: bool = True) -> dict[str, str]:
    """Return the names and values in a file. With `commented` this includes the commented lines."""
    pattern = r"^#?([A-Z_]+)=(.*)$" if commented else r"^([A-Z_]+)=(.*)$"
    return dict(re.findall(pattern, path.read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("path", [EMBEDDED, POSTGRESQL, CONTAINERS], ids=lambda path: path.name)
def test_every_name_is_a_setting_or_compose_variable(path: Path) -> None:
    asked = set(re.findall(r"\$\{(\w+)", COMPOSE)) if path == CONTAINERS else set()
    assert {name for name in pairs(path) if name.lower() not in Settings.model_fields} <= asked
    assert asked <= set(pairs(path))


@pytest.mark.parametrize("path", [EMBEDDED, POSTGRESQL, CONTAINERS], ids=lambda path: path.name)
@pytest.mark.parametrize("commented", [False, True], ids=["unchanged", "all lines"])
def test_service_accepts_every_value(path: Path, commented: bool, tmp_path: Path) -> None:
    lines = (f"{name}={value}" for name, value in pairs(path, commented=commented).items())
    (tmp_path / ".env").write_text("\n".join(lines))
    shown = command("config", "--json", cwd=tmp_path)
    assert shown.code == 0, shown.err
    assert shown.json["database_url"].startswith("postgresql:" if path == POSTGRESQL else "sqlite:")


def test_embedded_file_sets_nothing() -> None:
    assert pairs(EMBEDDED, commented=False) == {}


def test_container_file_leaves_passwords_empty() -> None:
    assert {name: value for name, value in pairs(CONTAINERS).items() if "PASSWORD" in name} == {
        "POSTGRES_PASSWORD": "",
        "NATS_PASSWORD": "",
    }


def test_container_file_leaves_out_values_of_compose() -> None:
    fixed = {"DATABASE_URL", "NATS_URL", "REDIS_URL", "SERVICE_HOST", "SERVICE_PORT", "METRICS_PORT"}
    assert set(pairs(CONTAINERS)) & fixed == set()


def test_container_file_has_the_defaults_of_embedded_file() -> None:
    embedded = pairs(EMBEDDED)
    offered = {name: value for name, value in pairs(CONTAINERS).items() if name.lower() in Settings.model_fields}
    changed = {name for name, value in offered.items() if value != embedded[name]}
    assert changed == {"LOG_FORMAT"}
