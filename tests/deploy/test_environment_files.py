"""The files to copy, one for each way to run the service: every name is a setting, and every value is possible."""

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
    """The names and values in a file; `commented` also those that are there to be uncommented."""
    pattern = r"^#?([A-Z_]+)=(.*)$" if commented else r"^([A-Z_]+)=(.*)$"
    return dict(re.findall(pattern, path.read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("path", [EMBEDDED, POSTGRESQL, CONTAINERS], ids=lambda path: path.name)
def test_every_name_is_a_setting_or_one_that_compose_asks_for(path: Path) -> None:
    asked = set(re.findall(r"\$\{(\w+)", COMPOSE)) if path == CONTAINERS else set()
    assert {name for name in pairs(path) if name.lower() not in Settings.model_fields} <= asked
    assert asked <= set(pairs(path))


@pytest.mark.parametrize("path", [EMBEDDED, POSTGRESQL, CONTAINERS], ids=lambda path: path.name)
@pytest.mark.parametrize("commented", [False, True], ids=["as it is", "with everything"])
def test_the_service_takes_every_value(path: Path, commented: bool, tmp_path: Path) -> None:
    lines = (f"{name}={value}" for name, value in pairs(path, commented=commented).items())
    (tmp_path / ".env").write_text("\n".join(lines))
    shown = command("config", "--json", cwd=tmp_path)
    assert shown.code == 0, shown.err
    assert shown.json["database_url"].startswith("postgresql:" if path == POSTGRESQL else "sqlite:")


def test_what_runs_without_a_setting_is_embedded() -> None:
    assert pairs(EMBEDDED, commented=False) == {}


def test_passwords_are_for_the_reader_to_choose() -> None:
    assert {name: value for name, value in pairs(CONTAINERS).items() if "PASSWORD" in name} == {
        "POSTGRES_PASSWORD": "",
        "NATS_PASSWORD": "",
    }


def test_what_compose_says_itself_is_not_offered() -> None:
    said = {"DATABASE_URL", "NATS_URL", "REDIS_URL", "SERVICE_HOST", "SERVICE_PORT", "METRICS_PORT"}
    assert set(pairs(CONTAINERS)) & said == set()


def test_settings_on_offer_in_containers_have_the_defaults_of_the_embedded_file() -> None:
    embedded = pairs(EMBEDDED)
    offered = {name: value for name, value in pairs(CONTAINERS).items() if name.lower() in Settings.model_fields}
    changed = {name for name, value in offered.items() if value != embedded[name]}
    assert changed == {"LOG_FORMAT"}
