"""`things-kit new`: the project that it writes passes its own tests, is clean, and runs."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Cli
from things_kit import Message, connect
from things_kit.cli.new.places import BROKERS
from things_kit.testing import MockHandler


def run(folder: Path, *command: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def make(cli: Cli, tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "web-shop", *arguments: str) -> Path:
        result = cli("new", str(tmp_path / name), *arguments)
        assert result.exit_code == 0, result.output
        return tmp_path / name

    return make


@pytest.mark.timeout(300)  # four programs, of which two read all that there is
def test_a_new_project_passes_its_own_tests_and_is_clean(make: Callable[..., Path], mypy_cache: Path) -> None:
    project = make()
    assert "4 passed" in run(project, "pytest", "-q", "-W", "error")
    run(project, "ruff", "check", "--no-cache", ".")
    run(project, "ruff", "format", "--no-cache", "--check", ".")
    packages = [make(f"for-{broker}", "--broker", broker) / f"for_{broker}" for broker in BROKERS]
    run(project, "mypy", "--cache-dir", str(mypy_cache), "web_shop", "tests", *map(str, packages))
    for file in project.rglob("*"):
        if file.suffix in {"", ".yaml", ".md", ".toml"} and file.is_file():
            assert "$" not in file.read_text(), file


@pytest.mark.parametrize("broker", BROKERS)
def test_every_broker_has_a_project_whose_configuration_is_right_wherever_it_runs(
    make: Callable[..., Path], broker: str
) -> None:
    project = make("shop", "--broker", broker)
    services = yaml.safe_load((project / "compose.yaml").read_text())["services"]
    told = services["app"].get("environment", {})
    sections = json.loads(run(project, "things_kit", "config", "--json", "shop.main:app", **told))
    in_force, port = sections[broker], sections["ops"]["port"]
    assert in_force["group_id"] == "shop"
    fields = {name.removeprefix(f"{broker.upper()}_").lower(): said for name, said in told.items()}
    for name in in_force.keys() & fields.keys():
        assert in_force[name] in (fields[name], [fields[name]])
    assert services["app"]["stop_grace_period"] == "35s"
    assert services["app"]["ports"] == [f"{port}:{port}"]
    if broker == "servicebus":  # which nothing runs here
        assert not told
        assert "broker" not in services
    else:
        assert in_force.keys() & fields.keys()
        assert ("broker" in services) == (broker != "sqlite")
        assert all(port.startswith("127.0.0.1:") for port in services.get("broker", {}).get("ports", ()))
    deployment, *more = yaml.safe_load_all((project / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 35
    (container,) = pod["containers"]
    assert container["ports"] == [{"name": "ops", "containerPort": port}]
    probes = {"livenessProbe": "/livez", "readinessProbe": "/readyz", "startupProbe": "/livez"}
    for probe, path in probes.items():
        assert container[probe]["httpGet"] == {"path": path, "port": "ops"}
    assert f"EXPOSE {port}" in (project / "Dockerfile").read_text()
    assert {each["name"] for each in container.get("env", ())} <= told.keys()
    if broker == "sqlite":  # a file that must outlive its pod, and that no two machines may write
        (claim,) = more
        assert deployment["spec"]["replicas"] == 1
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert container["env"][0]["value"].startswith(container["volumeMounts"][0]["mountPath"])
    else:
        assert not more
        assert deployment["spec"]["replicas"] == 2
    assert "check" in yaml.safe_load((project / ".github/workflows/ci.yaml").read_text())["jobs"]
    run(project, "ruff", "check", "--no-cache", ".")
    run(project, "ruff", "format", "--no-cache", "--check", ".")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")
async def test_a_new_project_consumes_and_stops(make: Callable[..., Path]) -> None:
    project = make()
    bills = MockHandler()
    async with connect(f"sqlite:///{project}/events.db") as broker:
        async with broker.consumer("bills", group="witness", handler=bills):
            await broker.producer().publish(Message("orders", b'{"id": "o-1", "amount": 5}', key=b"o-1"))
            app = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "web_shop", cwd=project, stderr=asyncio.subprocess.PIPE,
                env={**os.environ, "OPS_PORT": "0"},
            )  # fmt: skip
            try:
                await bills.handled(1, timeout=60)
                app.send_signal(signal.SIGTERM)
                _, said = await app.communicate()
            finally:
                if app.returncode is None:
                    app.kill()
                    await app.communicate()
        assert app.returncode == 0, said
        assert b'"billed"' in said
        assert await broker.lag("orders", "web-shop") == 0


@pytest.mark.parametrize("broker", BROKERS)
def test_the_readme_of_a_project_names_its_broker_by_a_url_that_is_understood(
    make: Callable[..., Path], broker: str
) -> None:
    url = BROKERS[broker].url
    connect(url)
    assert BROKERS[broker].address.partition("\n")[0].split(": ")[1].strip("[]") in url
    readme = (make("shop", "--broker", broker) / "README.md").read_text()
    assert f"things-kit dlq replay {url} orders-dlq" in readme


@pytest.mark.parametrize("name", ["Shop", "1shop", "shop.main", "class", "tests", "shöp"])
def test_a_bad_name_is_refused_with_a_sentence(cli: Cli, tmp_path: Path, name: str) -> None:
    result = cli("new", str(tmp_path / name))
    assert result.exit_code == 2
    assert "is no name for a project: expected lower-case letters" in result.output
    assert not (tmp_path / name).exists()


def test_a_name_may_be_one_letter(make: Callable[..., Path]) -> None:
    assert (make("y") / "y" / "main.py").exists()


def test_an_unknown_broker_is_refused_with_those_there_are(cli: Cli, tmp_path: Path) -> None:
    result = cli("new", str(tmp_path / "shop"), "--broker", "kafak")
    assert result.exit_code == 2
    assert "unknown broker 'kafak'; known are kafka, nats" in result.output


def test_a_folder_that_holds_something_is_left_alone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "mine").write_text("mine")
    result = cli("new", str(tmp_path / "shop"))
    assert result.exit_code == 1
    assert "exists and is not an empty folder" in result.output
    assert [path.name for path in (tmp_path / "shop").iterdir()] == ["mine"]
