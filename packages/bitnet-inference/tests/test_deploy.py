"""The files that start the server elsewhere: as far as they can be judged without their machines."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from bitnet_inference.server.health import live, ready
from bitnet_inference.server.metrics import Metrics
from bitnet_inference.server.routes import ENDPOINTS

DEPLOY = Path(__file__).parents[1] / "deploy"
ROOT = DEPLOY.parents[2]
MANIFESTS = sorted((DEPLOY / "kubernetes").rglob("*.yaml"))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def manifest(name: str) -> Any:
    return read(DEPLOY / "kubernetes" / f"{name}.yaml")


def container() -> Any:
    [found] = manifest("deployment")["spec"]["template"]["spec"]["containers"]
    return found


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's, each with its words."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def unit() -> dict[str, list[str]]:
    """The unit's settings, each with its values in order."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "bitnet.service").read_text().splitlines():
        name, sign, value = line.partition("=")
        if sign and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def commands() -> list[list[str]]:
    """The server's command line in each of the files."""
    return [
        ["bitnet", *json.loads(dict(instructions())["CMD"])],
        ["bitnet", *read(DEPLOY / "compose.yaml")["services"]["server"]["command"]],
        ["bitnet", *container()["args"]],
        shlex.split(unit()["ExecStart"][0].rpartition("/")[2]),
    ]


@pytest.mark.parametrize(
    "path", [*MANIFESTS, *DEPLOY.glob("*.yaml"), *DEPLOY.glob("ray/*.yaml")], ids=lambda path: path.name
)
def test_every_file_is_yaml_without_a_name_twice(path: Path) -> None:
    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader: Strict, node: yaml.MappingNode) -> dict[Any, Any]:
        names = [loader.construct_object(key) for key, _ in node.value]
        assert len(names) == len(set(names)), names
        return yaml.SafeLoader.construct_mapping(loader, node, deep=True)

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    assert list(yaml.load_all(path.read_text(), Strict))


def test_every_command_begins_the_server() -> None:
    for command in commands():
        assert command[:2] == ["bitnet", "serve"]
        assert {word for word in command if word.startswith("-")} <= {"--host", "--port"}


def test_no_file_has_a_secret() -> None:
    for path in (path for path in DEPLOY.rglob("*") if path.is_file()):
        assert not re.search(
            r"bn_[a-z2-7]{16}_|(?i:password|api_key|api-key): *[\"']?[A-Za-z0-9]{8,}", path.read_text()
        ), path


class TestImage:
    def test_it_runs_as_nobody_in_particular(self) -> None:
        users = [rest for name, rest in instructions() if name == "USER"]
        assert users == ["10001:10001"]
        order = [name for name, _ in instructions()]
        assert order.index("USER") < order.index("ENTRYPOINT")

    def test_what_is_built_upon_has_a_version(self) -> None:
        [version] = [rest.partition("=")[2] for name, rest in instructions() if name == "ARG"]
        assert re.fullmatch(r"3\.\d+-slim-\w+", version)
        bases = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
        assert set(bases) == {"python:${PYTHON}"}
        assert "latest" not in (DEPLOY / "Dockerfile").read_text()

    def test_it_leaves_no_lists_and_caches_behind(self) -> None:
        for name, rest in instructions():
            if name == "RUN" and "apt-get install" in rest:
                assert "--no-install-recommends" in rest
                assert "rm -rf /var/lib/apt/lists/*" in rest
            if name == "RUN" and "pip install" in rest:
                assert "--no-cache-dir" in rest

    def test_what_it_installs_is_there(self) -> None:
        install = next(rest for name, rest in instructions() if name == "RUN" and "pip install" in rest)
        folders = re.findall(r"\./(packages/[\w-]+)", install)
        assert len(folders) == 5
        assert all((ROOT / folder / "pyproject.toml").is_file() for folder in folders)

    def test_entry_and_health_are_lists_of_words(self) -> None:
        found = dict(instructions())
        assert json.loads(found["ENTRYPOINT"]) == ["bitnet"]
        assert json.loads(found["CMD"])[0] == "serve"
        check = json.loads(re.search(r"CMD (\[.*)", found["HEALTHCHECK"])[1])  # type: ignore[index]
        assert "/healthz" in check[-1]
        compile(check[-1], "HEALTHCHECK", "exec")


class TestCompose:
    def test_every_service_is_held_in_its_bounds(self) -> None:
        for name, service in read(DEPLOY / "compose.yaml")["services"].items():
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name
            assert "mem_limit" in service, name
            assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
            assert ":" in service["image"] or "build" in service, name

    def test_what_it_refers_to_is_there(self) -> None:
        found = read(DEPLOY / "compose.yaml")
        for config in found["configs"].values():
            assert "content" in config or (DEPLOY / config["file"]).is_file()
            assert yaml.safe_load(config.get("content", "{}")) is not None
        for service in found["services"].values():
            assert {config["source"] for config in service.get("configs", [])} <= set(found["configs"])
            assert set(service.get("secrets", [])) <= set(found["secrets"])
            assert {volume.partition(":")[0] for volume in service.get("volumes", [])} <= set(found["volumes"])
        build = found["services"]["server"]["build"]
        assert (DEPLOY / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).is_file()

    def test_prometheus_asks_the_server_with_its_key(self) -> None:
        job = read(DEPLOY / "prometheus.yaml")["scrape_configs"][0]
        assert job["static_configs"][0]["targets"] == ["server:8000"]
        assert job["authorization"]["credentials_file"] == "/run/secrets/key"

    def test_the_server_gets_the_time_that_its_end_takes(self) -> None:
        assert seconds(read(DEPLOY / "compose.yaml")["services"]["server"]["stop_grace_period"]) > 35
        assert int(unit()["TimeoutStopSec"][0]) > 35
        assert manifest("deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 40


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


class TestService:
    @pytest.mark.skipif(
        not shutil.which("systemd-analyze"), reason="NO SYSTEMD: its own check of units needs systemd-analyze"
    )
    def test_systemd_takes_it(self, tmp_path: Path) -> None:
        text = (DEPLOY / "bitnet.service").read_text().replace("/opt/bitnet/bin/bitnet", shutil.which("true") or "")
        (tmp_path / "bitnet.service").write_text(text)
        said = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", tmp_path / "bitnet.service"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert [line for line in said.stderr.splitlines() if "bitnet.service" in line] == []

    @pytest.mark.skipif(
        not shutil.which("systemd-analyze"), reason="NO SYSTEMD: its own check of units needs systemd-analyze"
    )
    def test_it_can_do_little_harm(self) -> None:
        said = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--no-pager", DEPLOY / "bitnet.service"],
            capture_output=True,
            text=True,
            check=False,
        )
        level = re.search(r"exposure level for bitnet\.service: ([\d.]+)", said.stdout)
        assert level is not None, said.stderr
        assert float(level[1]) < 2.0  # of 10

    @pytest.mark.skipif(not find_spec("bitnet_cli"), reason="NO COMMAND: install bitnet-cli to start `bitnet serve`")
    def test_its_environment_starts_the_server(self, tmp_path: Path) -> None:
        settings = dict(value.split("=", 1) for value in unit()["Environment"])
        settings = {name: value.replace("/var/lib/bitnet", str(tmp_path)) for name, value in settings.items()}
        settings |= {"BITNET_SERVE_PORT": "0", "BITNET_SERVE_API_KEY": "a-key-of-the-test"}
        command = [sys.executable, "-c", "from bitnet_cli.main import command_line; command_line()", "serve"]
        server = subprocess.Popen(command, env={**os.environ, **settings}, stderr=subprocess.PIPE, text=True)
        try:
            assert server.stderr is not None
            told = (json.loads(line) for line in server.stderr)
            url = next(line["urls"][0] for line in told if line["message"] == "started")
            assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
            assert httpx.get(f"{url}/metrics", trust_env=False).status_code == 401
            headers = {"Authorization": "Bearer a-key-of-the-test"}
            assert b"bitnet_" in httpx.get(f"{url}/metrics", headers=headers, trust_env=False).content
        finally:
            server.terminate()
            server.communicate(timeout=60)
        assert (tmp_path / "keys.db").stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "audit.jsonl").is_file()

    def test_what_it_writes_lies_where_it_may(self) -> None:
        settings = dict(value.split("=", 1) for value in unit()["Environment"])
        assert settings["BITNET_SERVE_KEYS"].startswith("/var/lib/bitnet/")
        assert settings["BITNET_SERVE_HOST"] == "127.0.0.1"
        assert unit()["DynamicUser"] == ["yes"]
        assert unit()["StateDirectory"] == ["bitnet"]


class TestKubernetes:
    def test_probes_ask_what_the_server_answers(self) -> None:
        handlers = {endpoint.path: endpoint.handler for endpoint in ENDPOINTS if endpoint.role == "none"}
        found = container()
        port = {one["name"]: one["containerPort"] for one in found["ports"]}
        for probe, handler in (("startupProbe", ready), ("readinessProbe", ready), ("livenessProbe", live)):
            asked = found[probe]["httpGet"]
            assert handlers[asked["path"]] is handler
            assert port[asked["port"]] == 8000

    def test_the_pod_may_do_nothing_beside_its_work(self) -> None:
        pod, found = manifest("deployment")["spec"]["template"]["spec"], container()
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        assert found["securityContext"]["readOnlyRootFilesystem"] is True
        assert found["securityContext"]["allowPrivilegeEscalation"] is False
        assert found["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert found["resources"]["requests"].keys() >= {"cpu", "memory"}
        assert "memory" in found["resources"]["limits"]
        assert {mount["name"] for mount in found["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}

    def test_more_replicas_come_when_requests_wait(self) -> None:
        found = manifest("autoscaler")["spec"]
        assert found["scaleTargetRef"]["name"] == manifest("deployment")["metadata"]["name"]
        assert "replicas" not in manifest("deployment")["spec"]
        [metric] = found["metrics"]
        name = metric["pods"]["metric"]["name"]
        [rule] = read(DEPLOY / "kubernetes" / "monitoring" / "adapter.yaml")["rules"]["custom"]
        assert rule["name"]["matches"] == name
        assert f"# TYPE {name} gauge".encode() in Metrics().render()[0]

    @pytest.mark.skipif(
        not shutil.which("kubectl"), reason="NO KUBECTL: manifests are put together by kubectl kustomize"
    )
    @pytest.mark.parametrize("folder", ["kubernetes", "kubernetes/monitoring"])
    def test_kustomize_puts_them_together(self, folder: str) -> None:
        said = subprocess.run(["kubectl", "kustomize", DEPLOY / folder], capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr
        objects = list(yaml.safe_load_all(said.stdout))
        assert {one["metadata"]["namespace"] for one in objects} == {"bitnet"}
        label = {"app.kubernetes.io/name": "bitnet"}
        for one in objects:
            spec = one.get("spec", {})
            for selector in (spec.get("selector"), spec.get("podSelector")):
                if selector is not None:
                    assert selector.get("matchLabels", selector) == label, one["kind"]


class TestRay:
    def test_the_application_and_its_parts_are_in_the_file(self) -> None:
        [application] = read(DEPLOY / "ray" / "serve.yaml")["applications"]
        file, name = application["import_path"].split(":")
        tree = ast.parse((DEPLOY / "ray" / f"{file}.py").read_text())
        assert name in {one.name for one in tree.body if isinstance(one, ast.FunctionDef)}
        classes = {one.name for one in tree.body if isinstance(one, ast.ClassDef)}
        assert {one["name"] for one in application["deployments"]} <= classes
        assert application["args"].keys() == {"models", "keys"}


class TestDashboard:
    def test_every_figure_that_it_asks_for_is_one_of_ours(self) -> None:
        told = Metrics().render()[0].decode()
        ours = set(re.findall(r"^# TYPE (bitnet_\w+)", told, re.MULTILINE))
        text = (DEPLOY / "grafana.json").read_text()
        asked = set(re.findall(r"\bbitnet_\w+", " ".join(re.findall(r'"(?:expr|query)": "((?:[^"\\]|\\.)*)"', text))))
        assert asked
        names = {re.sub(r"_(?:bucket|sum|count|total)$", "", name) for name in asked}
        assert names <= ours | {name.removesuffix("_total") for name in ours}
