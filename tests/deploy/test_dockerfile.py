"""The image: its content, its user, and a run of its build commands."""

import json
import re
import signal
import stat
import subprocess
import time
from pathlib import Path

import httpx2
import pytest

from credit_service import __version__
from tests.deploy.dockerfile import ROOT, Built, environment, is_sent, only, stages
from tests.served import die_with_parent, reaped

BUILD, IMAGE = stages()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("image"))


def test_both_stages_use_the_same_pinned_slim_python() -> None:
    bases = [only(stage, "FROM").words[0] for stage in (BUILD, IMAGE)]
    assert len(set(bases)) == 1, "programs of the first stage would not find the Python of the second"
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", bases[0])


def test_ci_tests_the_python_of_the_image() -> None:
    version = re.match(r"python:(3\.\d+)", only(IMAGE, "FROM").rest)
    assert version is not None
    assert f'"{version[1]}"' in (ROOT / ".github/workflows/ci.yml").read_text()


def test_image_user_is_a_number_and_owns_only_data() -> None:
    user = only(IMAGE, "USER").rest
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    owned = [copied.words[-1] for copied in IMAGE if copied.name == "COPY" and f"--chown={user}" in copied.rest]
    assert owned == only(IMAGE, "VOLUME").words == only(IMAGE, "WORKDIR").words


def test_final_stage_runs_no_command_and_installs_nothing() -> None:
    assert {instruction.name for instruction in IMAGE} & {"RUN", "ADD", "ARG", "SHELL"} == set()
    assert "curl" not in only(IMAGE, "HEALTHCHECK").rest


@pytest.mark.parametrize(
    "path",
    [
        ".env",
        "deploy/.env",
        ".git",
        "credit-service.db",
        "credit-service.db.admin-key",
        "tests/served.py",
        ".venv",
        "src/credit_service/__pycache__",
    ],
)
def test_build_never_sees_secret_or_unneeded_files(path: str) -> None:
    assert not is_sent(path)


def test_exposed_ports_match_the_settings() -> None:
    assert environment(IMAGE)["SERVICE_PORT"] in only(IMAGE, "EXPOSE").words


@pytest.mark.slow
def test_build_installs_service_without_development_tools(built: Built) -> None:
    def program(*command: str) -> str:
        ran = subprocess.run(built.command(command), check=True, capture_output=True, text=True, cwd=built.root)
        return ran.stdout

    assert program("credit-service", "--version") == f"credit-service {__version__}\n"
    found = (
        "from importlib.metadata import distributions as d; import credit_service; print(credit_service.__file__);"
        "print(*sorted(x.name.lower() for x in d()))"
    )
    file, names = program("python", "-I", "-c", found).splitlines()
    assert Path(file).is_relative_to(built.path("/opt/credit-service")), "an editable install would need the sources"
    assert {"asyncpg", "uvloop", "nats-py", "opentelemetry-sdk"} <= set(names.split())
    assert {"pytest", "mypy", "hypothesis", "uv", "pip"} & set(names.split()) == set()


@pytest.mark.slow
def test_health_check_passes_only_while_service_answers(built: Built, unused_tcp_port: int, tmp_path: Path) -> None:
    environment = built.environment | {"SERVICE_PORT": str(unused_tcp_port)}
    command, check = (
        built.command([*json.loads(only(IMAGE, "ENTRYPOINT").rest), *json.loads(only(IMAGE, "CMD").rest)]),
        built.command(json.loads(only(IMAGE, "HEALTHCHECK").rest.partition("CMD ")[2])),
    )
    data = built.path(only(IMAGE, "WORKDIR").rest)

    def healthy() -> bool:
        return subprocess.run(check, env=environment, stderr=subprocess.DEVNULL).returncode == 0

    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=data, env=environment, text=True, stdout=log, stderr=log, preexec_fn=die_with_parent
        )
    with reaped(process):
        until = time.monotonic() + 60
        while not healthy():
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.1)
        assert httpx2.get(f"http://127.0.0.1:{unused_tcp_port}/readyz", timeout=30).status_code == 200
        key = data / "credit-service.db.admin-key"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600, "only the owner may read the first admin key"
        process.terminate()
        assert process.wait(30) in (0, -signal.SIGTERM)
        assert not healthy()
