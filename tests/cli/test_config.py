"""`credit-service config`."""

from pathlib import Path

import pytest

from credit_service.cli.config import _masked
from credit_service.settings import Settings
from tests.commands import command


def test_every_setting_is_shown_by_its_name_in_the_environment(tmp_path: Path) -> None:
    lines = command("config", cwd=tmp_path).out.splitlines()
    assert [line.partition("=")[0].lower() for line in lines] == list(Settings.model_fields)
    assert "TRIAL_CREDITS=100" in lines


def test_what_is_in_force_is_shown_wherever_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / "credit-service.yaml").write_text("trial_credits: 1\nlog_level: debug\nsweep_seconds: 2\n")
    (tmp_path / ".env").write_text("TRIAL_CREDITS=2\nLOG_LEVEL=warning\n")
    shown = command("config", "--json", cwd=tmp_path, TRIAL_CREDITS="3").json
    assert (shown["trial_credits"], shown["log_level"], shown["sweep_seconds"]) == (3, "warning", 2)


def test_what_is_shown_can_be_given_back_as_settings(tmp_path: Path) -> None:
    given = {"ORDER_CREDIT_PERCENTAGE": "2.50", "SHOPIFY_PLAN_CREDITS": '{"Für alle": 5}'}
    shown = command("config", cwd=tmp_path, **given).out
    assert 'SHOPIFY_PLAN_CREDITS={"Für alle": 5}\n' in shown
    (tmp_path / ".env").write_text(shown)
    assert command("config", cwd=tmp_path).out == shown


def test_the_command_line_wins(tmp_path: Path) -> None:
    shown = command("config", "--json", "--database-url", "sqlite:///other.db", cwd=tmp_path).json
    assert shown["database_url"] == "sqlite:///other.db"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///credit-service.db", "sqlite:///credit-service.db"),
        ("postgresql://user:hunter2@host:5432/db", "postgresql://user:***@host:5432/db"),
        ("postgresql://u@host/db?password=hunter2&sslmode=on", "postgresql://u@host/db?password=masked&sslmode=on"),
        ("postgresql://u@host/db?sslpassword=hunter2", "postgresql://u@host/db?sslpassword=masked"),
    ],
)
def test_passwords_of_a_database_are_masked_wherever_they_stand(url: str, shown: str) -> None:
    assert _masked(url) == shown
