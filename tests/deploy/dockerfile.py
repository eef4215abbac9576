"""Read deploy/Dockerfile, and run its build in a folder that stands for the image's root.

The tests run without a Docker engine. So this leaves out the base image, its user and its layers.
"""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
_SECONDS = 300


class Instruction(NamedTuple):
    """One instruction of a Dockerfile, on one line."""

    name: str
    rest: str

    @property
    def words(self) -> list[str]:
        """Return the arguments of the instruction, without options."""
        return [word for word in shlex.split(self.rest) if not word.startswith("--")]


def stages() -> list[list[Instruction]]:
    """Return the instructions of each stage. A stage begins with its FROM."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    found: list[list[Instruction]] = []
    for line in filter(None, re.sub(r"\\\n\s*", "", text).splitlines()):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            found.append([])
        found[-1].append(Instruction(name, rest.strip()))
    return found


def only(stage: list[Instruction], name: str) -> Instruction:
    """Return the only instruction with this name in a stage."""
    (found,) = [instruction for instruction in stage if instruction.name == name]
    return found


def environment(stage: list[Instruction]) -> dict[str, str]:
    """Return the environment variables that a stage sets."""
    pairs = [word for instruction in stage if instruction.name == "ENV" for word in instruction.words]
    return dict(pair.split("=", 1) for pair in pairs)


def is_sent(path: str) -> bool:
    """Return whether a build can see this path of the repository, by deploy/Dockerfile.dockerignore."""
    sent = True
    for line in DOCKERFILE.with_suffix(".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        parts = [path, *map(str, Path(path).parents), Path(path).name]
        if line and not line.startswith("#") and any(fnmatch.fnmatch(part, pattern) for part in parts):
            sent = line.startswith("!")
    return sent


class Built:
    """The result of a build, in a folder that stands for `/`."""

    def __init__(self, root: Path) -> None:
        """Run the build. Raises CalledProcessError if a command fails."""
        self.root = root
        self._stages = stages()
        building, image = self._stages
        self._environment = {name: self._inside(value) for name, value in environment(building).items()}
        for instruction in building:
            self._do(instruction)
        for instruction in image:
            if instruction.name == "COPY":
                source, target = instruction.words
                assert "--from=build" in instruction.rest, "the image copies only from its first stage"
                assert self.path(source).is_dir()
                if not self.path(target).exists():
                    self.path(source).rename(self.path(target))

    def path(self, path: str) -> Path:
        """Return the real path of a path in the image."""
        return self.root / path.lstrip("/")

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of the image, with its programs first on PATH."""
        set_ = {name: self._inside(value) for name, value in environment(self._stages[-1]).items() if name != "PATH"}
        return set_ | {"PATH": f"{self.path('/opt/credit-service/bin')}{os.pathsep}{os.environ['PATH']}"}

    def command(self, command: Sequence[str]) -> list[str]:
        """Return a command of the image with the real path of its program."""
        return [str(self.path(f"/opt/credit-service/bin/{command[0]}")), *command[1:]]

    def _inside(self, value: str) -> str:
        return str(self.path(value)) if value.startswith("/") else value

    def _do(self, instruction: Instruction) -> None:
        if instruction.name == "WORKDIR":
            self._folder = self.path(instruction.rest)
            self._folder.mkdir()
            if (ROOT / ".uv").exists():  # avoid the download of uv, which tests/test_tooling.py tests
                (self._folder / ".uv").symlink_to(ROOT / ".uv")
        elif instruction.name == "COPY":
            *sources, target = instruction.words
            for source in sources:
                self._copy(source, target)
        elif instruction.name == "RUN":
            self._run(instruction.rest)
        else:
            assert instruction.name in ("FROM", "ENV"), f"this module does not support {instruction.name}"

    def _copy(self, source: str, target: str) -> None:
        assert is_sent(source), f"the .dockerignore excludes {source}"
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, self._folder / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            folder = self._folder / target
            folder.mkdir(exist_ok=True)
            shutil.copy(ROOT / source, folder)

    def _run(self, command: str) -> None:
        outside = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        subprocess.run(
            ["/bin/sh", "-ec", command],
            cwd=self._folder,
            env=outside | self._environment,
            check=True,
            timeout=_SECONDS,
        )
