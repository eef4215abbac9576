"""`credit-service config`."""

from pathlib import Path

from credit_service.settings import Settings
from tests.commands import command


def test_every_setting_is_shown_by_its_name(tmp_path: Path) -> None:
    lines = command("config", cwd=tmp_path).out.splitlines()
    assert [line.partition("=")[0].lower() for line in lines] == list(Settings.model_fields)
    assert "TRIAL_CREDITS=100" in lines


def test_settings_in_force_are_shown_from_every_source(tmp_path: Path) -> None:
    (tmp_path / "credit-service.yaml").write_text("trial_credits: 1\nlog_level: debug\nsweep_seconds: 2\n")
    (tmp_path / ".env").write_text("TRIAL_CREDITS=2\nLOG_LEVEL=warning\n")
    shown = command("config", "--json", cwd=tmp_path, TRIAL_CREDITS="3").json
    assert (shown["trial_credits"], shown["log_level"], shown["sweep_seconds"]) == (3, "warning", 2)


def test_output_is_a_valid_env_file(tmp_path: Path) -> None:
    given = {"ORDER_CREDIT_PERCENTAGE": "2.50", "SHOPIFY_PLAN_CREDITS": '{"Für alle": 5}'}
    shown = command("config", cwd=tmp_path, **given).out
    assert 'SHOPIFY_PLAN_CREDITS={"Für alle": 5}\n' in shown
    (tmp_path / ".env").write_text(shown)
    assert command("config", cwd=tmp_path).out == shown


def test_command_line_wins(tmp_path: Path) -> None:
    shown = command("config", "--json", "--database-url", "sqlite:///other.db", cwd=tmp_path).json
    assert shown["database_url"] == "sqlite:///other.db"
