"""What the documents tell a reader to type works, typed as it stands."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.served import served

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = ["README.md", "docs/quickstart.md"]


def _blocks(document: str, *, calling: bool) -> list[str]:
    """The shell blocks of a document that call the service, or those that run its command."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / document).read_text(encoding="utf-8"), flags=re.M | re.S)
    return [block for block in blocks if ("curl " if calling else "credit-service replay") in block]


def _typed(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _values(text: str) -> Iterator[Any]:
    """The JSON values that stand one behind the other."""
    while text := text.strip():
        value, end = json.JSONDecoder().raw_decode(text)
        yield value
        text = text[end:]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_its_calls_are_answered_without_an_error(document: str, tmp_path: Path) -> None:
    blocks = _blocks(document, calling=True)
    assert blocks
    with served(tmp_path / "credit-service.db") as service:
        script = "\n".join(blocks).replace("http://127.0.0.1:8015", service.url)
        typed = _typed(script, tmp_path)
    assert (typed.returncode, typed.stderr) == (0, "")
    answers = list(_values(typed.stdout))
    assert len(answers) == script.count("curl ")
    assert [answer for answer in answers if "data" not in answer] == []


def test_the_commands_of_the_readme_do_what_they_say(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (block,) = _blocks("README.md", calling=False)
    typed = _typed(block, tmp_path)
    assert typed.returncode == 0, typed.stderr
    assert "0 refused" in typed.stdout
    assert "no fault" in typed.stdout
    assert "Usage: credit-service" in typed.stdout
