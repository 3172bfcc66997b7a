"""The example for Docker: its files, by what is known to go wrong with such; its programs, by running them.

Docker itself is not needed. The two processes of the service run here, on a real PostgreSQL with pgvector.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.helpers import eventually
from tests.servers import free_port, running_postgres

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "compose"
SERVICES: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))["services"]
DOCKERFILE = (FOLDER / "Dockerfile").read_text("utf-8").replace("\\\n", " ").splitlines()
# As compose's specification spells them.
KEYS = set("build deploy depends_on env_file environment healthcheck image ports restart volumes".split())
HEALTH_KEYS = {"test", "interval", "timeout", "retries", "start_period"}
PINNED = re.compile(r"[a-z0-9./-]+:\d+\.\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?")


def variables() -> dict[str, str]:
    """Those of the file that services read."""
    lines = (FOLDER / "local.env").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_written_as_compose_reads_it(name: str) -> None:
    """Known keys, pinned images, a check of health, no port that other machines reach."""
    service = SERVICES[name]
    image = service.get("image") or instructions("FROM")[0]

    assert set(service) <= KEYS
    assert PINNED.fullmatch(image), f"{image} is not pinned"
    assert set(service["healthcheck"]) <= HEALTH_KEYS
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    for other, how in service.get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        assert SERVICES[other]["healthcheck"]


def test_what_compose_names_is_there() -> None:
    """Files, volumes, and as many ports as processes."""
    whole = yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))
    app, (mounted,) = SERVICES["app"], SERVICES["db"]["volumes"]
    first, last = map(int, re.findall(r":(\d+)-(\d+):", app["ports"][0])[0])

    assert mounted.split(":")[0] in whole["volumes"]
    assert (FOLDER / app["build"]["context"]).resolve() == ROOT
    assert ROOT / app["build"]["dockerfile"] == FOLDER / "Dockerfile"
    assert {service["env_file"] for service in SERVICES.values()} == {"local.env"}
    assert last - first + 1 == app["deploy"]["replicas"] == 2


def test_the_only_secret_is_a_password_for_this_machine() -> None:
    """In the file of variables; PostgreSQL and its clients are given the same."""
    given = {name: value for one in SERVICES.values() for name, value in one["environment"].items()}
    secret = re.compile(r"pass|secret|token|key", re.IGNORECASE)

    assert [name for name in given if secret.search(name)] == []
    assert not any(re.search(r"//[^/@]*:[^/@]*@", value) for value in given.values())
    assert not any(secret.search(line) for line in DOCKERFILE)
    assert set(variables()) == {"POSTGRES_PASSWORD", "PGPASSWORD"}
    assert set(variables().values()) == {"only-for-this-machine"}
    assert "ports" not in SERVICES["db"]


def test_the_image_is_made_of_what_is_here() -> None:
    """Each file that is copied exists and is not ignored; packages are locked; nothing runs as root."""
    copied = [source for line in instructions("COPY") for source in line.split()[:-1]]
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text("utf-8").split()
    installs = [one for line in instructions("RUN") for one in line.split("&&") if "pip install" in one]

    assert ignored[0] == "*"
    assert {one[1:] for one in ignored if one.startswith("!")} == set(copied)
    assert all((ROOT / source).exists() for source in copied)
    assert all("--constraint constraints.txt" in one for one in installs)
    assert instructions("ADD") == []
    assert instructions("USER")[-1] == "app"
    assert {line.split()[0] for line in DOCKERFILE if line and line[0] not in " #"} == {
        "FROM", "RUN", "WORKDIR", "COPY", "USER", "EXPOSE", "CMD",
    }  # fmt: skip


def instructions(kind: str) -> list[str]:
    """What stands behind an instruction of the Dockerfile, each time."""
    return [line.split(maxsplit=1)[1] for line in DOCKERFILE if line.startswith(f"{kind} ")]


@contextlib.contextmanager
def running(database: str, home: Path) -> Iterator[str]:
    """A process of the service, as the image starts it; where it listens."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port), "--log-level", "warning"]
    paths = os.pathsep.join(map(str, (FOLDER, FOLDER.parent)))
    given = {"IBIDEM_DATABASE": database, "IBIDEM_PATH": str(home), "PYTHONPATH": paths, "MODEL": ""}
    process = subprocess.Popen(command, env={**os.environ, **given}, cwd=home)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(30) in (0, -15)


@pytest.mark.slow
def test_two_processes_share_what_either_has_stored(tmp_path: Path) -> None:
    """They open an empty database at the same time; the client says at the end what the cache did."""
    homes = [tmp_path / name for name in ("one", "two")]
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(running_postgres())
        for home in homes:
            home.mkdir()
        urls = [stack.enter_context(running(database, home)) for home in homes]
        assert all(eventually(lambda url=url: healthy(url), 120) for url in urls)
        command = [sys.executable, FOLDER / "ask.py", *urls]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        found = "  hits 3: 1 exact, 2 semantic\n  misses 3\n"  # in both processes, when both have logged it
        assert eventually(lambda: found in httpx.get(f"{urls[1]}/stats", trust_env=False).text)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nWhat the cache did\n  hits" in done.stdout
    assert len(set(re.findall(r", by (.*)$", done.stdout, re.MULTILINE))) == 2


def healthy(url: str) -> bool:
    """By the address that the image's check of health asks for."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    return False
