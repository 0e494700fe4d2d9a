"""The recipes below configs/deploy: every path, command and key that they name exists."""

from __future__ import annotations

import http.client
import re
import shlex
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main
import yaml

from carefl_secure.cli.app import app
from carefl_secure.config import load_config
from carefl_secure.deployment.flower.processes import free_port
from carefl_secure.deployment.provisioning.provision import rehearse
from carefl_secure.deployment.provisioning.site_bundle import HALVES
from carefl_secure.deployment.provisioning.sites import read_sites
from carefl_secure.federation.transport.flower_internals import TESTED_FLOWER

ROOT = Path(__file__).resolve().parents[2]
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
DEPLOY = ROOT / "configs" / "deploy"
BOTH = {"bundle.json", "roster.json"}
AGENT, NODE = BOTH | set(HALVES["agent"]), BOTH | set(HALVES["supernode"])
START = {"start.sh", "carefl-supernode.service"}  # for a site without containers
SERVER = {"bundle.json", "roster.json", "ca.crt", "server.pem", "server.key"}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("recipes") / "bundles"
    rehearse(read_sites(DEPLOY / "sites.yaml"), out)
    return out


def parse(words: list[str]) -> None:
    """Let the command line of the package read these words, without running them."""
    node: click.Command = typer.main.get_command(app)
    context = click.Context(node, info_name="carefl-secure")
    while isinstance(node, click.Group):
        inner = node.get_command(context, words[0])
        assert inner is not None, words
        node, words = inner, words[1:]
    node.make_context("command", list(words))


def commented(path: Path) -> Iterator[list[str]]:
    """Find the commands that the header of a file shows."""
    text = path.read_text("utf-8")
    lines = [line.lstrip("#").strip() for line in text.splitlines() if line.startswith("#")]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if line.startswith(("carefl-secure ", "docker ", "kubectl ", "nginx ")):
            yield shlex.split(line, comments=True)


@pytest.mark.parametrize("path", sorted(DEPLOY.iterdir()), ids=lambda path: path.name)
def test_the_commands_of_a_header_exist_and_so_do_their_files(path: Path, bundles: Path) -> None:
    shown = list(commented(path))
    assert shown, f"{path.name} does not say how it is used"
    for words in shown:
        if "carefl-secure" in words and "build" not in words:
            parse(words[words.index("carefl-secure") + 1 :])
        for word in words:
            named = word.rpartition("=")[2]
            if named.startswith("configs/"):
                assert (ROOT / named).exists(), word
            if named.startswith("bundles/"):
                assert (bundles / named.removeprefix("bundles/")).exists(), word


def test_the_run_fits_the_sites_and_needs_no_look_at_any() -> None:
    sites = read_sites(DEPLOY / "sites.yaml")
    config = load_config(DEPLOY / "run.yaml", ["simulation.dropout=0", "data.at_sites=true"])
    assert config.federation.clients == len(sites.clients)
    assert config.data.words and config.federation.public_records


# --- compose ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert isinstance(found, dict)
    return found


def held(compose: dict[str, Any], service: str) -> dict[str, str]:
    """Return what a service sees of the host, by its place in the container."""
    about = compose["services"][service]
    found = {}
    for volume in about.get("volumes", ()):
        source, target = volume.split(":")[:2]
        found[target] = source
    for secret in about.get("secrets", ()):
        found[secret["target"]] = compose["secrets"][secret["source"]]["file"]
    return found


def test_every_service_is_hardened_and_only_the_proxys_port_is_open(compose: dict[str, Any]) -> None:
    for name, about in compose["services"].items():
        assert about["read_only"] is True and about["cap_drop"] == ["ALL"], name
        assert about["security_opt"] == ["no-new-privileges:true"], name
        assert not about.get("privileged") and about["user"].startswith("${CAREFL_"), name
        if name.endswith("-agent"):
            assert about["network_mode"] == "none" and "networks" not in about
        ports = about.get("ports", [])
        assert ports == (["9092:9092"] if name == "server" else []), name
    assert compose["services"]["proxy"]["network_mode"] == "service:server"
    # On the loopback that only the proxy shares: the control interface leaves by no other way.
    assert "--host" not in compose["services"]["server"]["command"]


def test_commands_and_files_of_the_services_exist(compose: dict[str, Any], bundles: Path) -> None:
    for name, about in compose["services"].items():
        if about["image"].startswith("${CAREFL_IMAGE"):
            parse(about["command"])
        for target, source in held(compose, name).items():
            if source.startswith("./bundles/"):
                assert (bundles / source.removeprefix("./bundles/")).exists(), (name, source)
                assert target.startswith(("/bundle", "/submit", "/etc/carefl/")), (name, target)
            elif source.startswith("./configs/"):
                assert (ROOT / source).is_file()


def test_no_service_holds_what_is_anothers(compose: dict[str, Any], bundles: Path) -> None:
    sites = read_sites(DEPLOY / "sites.yaml")
    for site, images in sites.clients.items():
        agent, node = held(compose, f"{site}-agent"), held(compose, f"{site}-node")
        assert agent["/bundle"] == f"./bundles/sites/{site}" and images in agent
        assert node["/bundle"] == f"./bundles/sites/{site}/supernode" and len(node) == 2
        assert {path.name for path in (bundles / f"sites/{site}/supernode").iterdir()} == NODE | START
        services = compose["services"]
        assert "/bundle/supernode" in services[f"{site}-agent"]["tmpfs"]
        # Two accounts with one group.
        users = [services[f"{site}-{half}"]["user"].rpartition(":") for half in ("agent", "node")]
        assert users[0][0] != users[1][0] and users[0][2] == users[1][2]
        assert agent["/meet"] == node["/meet"] == f"{site}-meet"
    proxy = held(compose, "proxy")
    assert {Path(place).name for place in proxy} == {
        "nginx.conf", "server.pem", "server.key", "ca.crt"
    }  # fmt: skip
    for name in ("server", "proxy"):
        assert not any("sites" in source for source in held(compose, name).values())


# --- cluster ----------------------------------------------------------------------------------


def objects(name: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all((DEPLOY / name).read_text()) if one]


CLUSTER = ("kubernetes-site.yaml", "kubernetes-server.yaml")


@pytest.mark.parametrize("name", CLUSTER)
def test_pods_are_restricted_alone_and_behind_a_policy(name: str) -> None:
    kinds: dict[str, list[dict[str, Any]]] = {}
    for one in objects(name):
        assert one["apiVersion"] and one["metadata"]["name"]
        kinds.setdefault(one["kind"], []).append(one)
    (pods,) = kinds["StatefulSet"]
    (wall,) = kinds["NetworkPolicy"]
    spec, pod = pods["spec"], pods["spec"]["template"]["spec"]
    assert spec["replicas"] == 1
    labels = spec["template"]["metadata"]["labels"]
    assert labels == spec["selector"]["matchLabels"] == wall["spec"]["podSelector"]["matchLabels"]
    assert wall["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert pod["automountServiceAccountToken"] is False and "hostNetwork" not in pod
    assert pod["securityContext"]["runAsNonRoot"] is True
    volumes = {one["name"] for one in pod["volumes"]}
    volumes |= {one["metadata"]["name"] for one in spec["volumeClaimTemplates"]}
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"]
        assert {"readinessProbe", "livenessProbe"} & set(container)
        if container["image"].startswith("carefl-secure@"):
            parse(container["args"])
            assert "--host" not in container["args"]


@pytest.mark.parametrize("name", CLUSTER)
def test_secrets_are_made_of_files_of_the_kit_and_mounted_where_they_belong(name: str, bundles: Path) -> None:
    made: dict[str, set[str]] = {}
    for words in commented(DEPLOY / name):
        if words[0] == "kubectl" and "create" in words and words[-1].startswith("--from-file"):
            place = next(i for i, word in enumerate(words) if word.startswith("--from-file"))
            files = [Path(word.partition("=")[2]) for word in words[place:]]
            made[words[place - 1]] = {
                inner.name
                for file in files
                for inner in ([file] if file.suffix else (bundles.parent / file).iterdir())
            }
    if name == "kubernetes-site.yaml":
        assert made == {"agent": AGENT, "supernode": NODE | START}
    else:
        assert made["server"] == SERVER and made["proxy"] == {"nginx.conf"}
        assert made["submit"] == {"submit.key"}
        assert made["nodes"] == {"north.pub", "south.pub", "west.pub"}
    pod = next(one for one in objects(name) if one["kind"] == "StatefulSet")["spec"]["template"]
    for volume in pod["spec"]["volumes"]:
        known = volume.get("secret", {}).get("secretName") or volume.get("configMap", {}).get("name")
        assert known is None or known in made, volume
    for container in pod["spec"]["containers"]:
        for mount in container["volumeMounts"]:
            if mount["name"] in made and "subPath" in mount:
                assert mount["subPath"] in made[mount["name"]], mount
                assert mount["readOnly"] is True
        if container["name"] == "supernode":
            assert {mount["name"] for mount in container["volumeMounts"]}.isdisjoint({"agent", "state", "images"})


def test_a_policy_that_is_changed_in_its_secret_reaches_the_agent() -> None:
    """The kubelet updates a mounted folder, and never a file that is mounted by subPath."""
    (pod,) = (one for one in objects("kubernetes-site.yaml") if one["kind"] == "StatefulSet")
    spec = pod["spec"]["template"]["spec"]
    (link,) = spec["initContainers"]
    assert link["command"] == ["ln", "-sfn", "/policy/policy.yaml", "/bundle/policy.yaml"]
    assert link["securityContext"]["readOnlyRootFilesystem"] is True
    (agent,) = (one for one in spec["containers"] if one["name"] == "agent")
    folder = [mount for mount in agent["volumeMounts"] if mount["mountPath"] == "/policy"]
    assert [one.get("subPath") for one in folder] == [None]
    assert "policy.yaml" not in {mount.get("subPath") for mount in agent["volumeMounts"]}


CHECKERS = {  # words, files, and a text of theirs with what makes it wrong
    "hadolint": ([], ["Dockerfile"], ("USER 10001", "USER root\nRUN cd /tmp")),
    "kubeconform": (["-strict"], list(CLUSTER), ("replicas: 1", "replica: 1")),
    "kubernetes-validate": (["--strict"], list(CLUSTER), ("replicas: 1", "replica: 1")),
}


@pytest.mark.slow
@pytest.mark.parametrize("tool", CHECKERS)
def test_the_recipes_pass_the_checkers_of_their_kind(tool: str, tmp_path: Path) -> None:
    program = shutil.which(tool) or shutil.which(tool, path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip(f"{tool} is not installed")
    words, files, (right, wrong) = CHECKERS[tool]

    def check(folder: Path) -> tuple[bool, str]:
        done = subprocess.run([program, *words, *files], cwd=folder, capture_output=True, text=True, check=False)
        return done.returncode == 0, done.stdout + done.stderr

    good, said = check(DEPLOY)
    assert good, said
    for name in files:
        text = (DEPLOY / name).read_text()
        assert right in text
        (tmp_path / name).write_text(text.replace(right, wrong))
    assert not check(tmp_path)[0]


# --- image and proxy --------------------------------------------------------------------------


def test_the_image_copies_what_exists_and_holds_no_kit() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        *sources, _ = line.split()
        for source in sources:
            assert (ROOT / source).exists(), source
    assert "bundles" not in re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    assert re.search(r"^USER \d+$", text, re.MULTILINE)
    assert re.search(r"--require-hashes -r /src/configs/deploy/flower.txt", text)
    pinned = re.findall(r"(?m)^flwr==(\d+\.\d+)\.\d+ --hash=sha256:[0-9a-f]{64}$", (DEPLOY / "flower.txt").read_text())
    assert len(pinned) == 1 and pinned[0] in TESTED_FLOWER


def test_no_image_is_taken_by_a_tag_in_silence(compose: dict[str, Any]) -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r"(?m)^ARG PYTHON\nFROM \$\{PYTHON\}\nARG PYTHON$", text)  # no default
    (check,) = re.findall(r"(?m)^RUN (case .+ esac)$", text)
    for image, code in {"python@sha256:" + "0" * 64: 0, "python:3.11-slim": 1, "": 1}.items():
        done = subprocess.run(["sh", "-c", check], env={"PYTHON": image}, capture_output=True, check=False)
        assert done.returncode == code, image
    images = {about["image"] for about in compose["services"].values()}
    assert {re.sub(r":\?.*", "", image) for image in images} == {"${CAREFL_IMAGE", "${CAREFL_NGINX"}
    for file in CLUSTER:
        named = re.findall(r"(?m)^\s+(?:- )?image: (.+)$", (DEPLOY / file).read_text())
        assert named and all(name.endswith("@sha256:DIGEST") for name in named), file


def test_the_proxy_passes_one_path_and_refuses_the_rest() -> None:
    text = (DEPLOY / "nginx.conf").read_text()
    assert text.count("{") == text.count("}")
    assert text.count("proxy_pass") == 1 and "proxy_ssl_verify on;" in text
    (allowed,) = re.findall(r"location ~ (\S+) \{", text)
    assert re.fullmatch(allowed, "/v1/fleet/pull-messages")
    for path in ("/v1/control/start-run", "/v1/runtime/get-nodes", "/v1/fleet/../control/x", "/"):
        assert not re.fullmatch(allowed, path)
    assert re.search(r"location / \{\s+return 403;", text)


class Upstream(BaseHTTPRequestHandler):
    """Stands for a SuperLink: says what it was asked and how much came."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            size = 0
            while part := int(self.rfile.readline(), 16):
                size += len(self.rfile.read(part))
                self.rfile.readline()
            self.rfile.readline()
        else:
            size = len(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        said = f"{self.path} {size}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_GET = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


def ask(
    port: int, ca: Path, path: str, body: bytes = b"", method: str = "POST", claimed: int | None = None
) -> tuple[int, str]:
    trust = ssl.create_default_context(cafile=str(ca))
    link = http.client.HTTPSConnection("localhost", port, context=trust, timeout=30)
    try:
        link.putrequest(method, path)
        link.putheader("Content-Length", str(len(body) if claimed is None else claimed))
        link.endheaders(body)
        reply = link.getresponse()
        return reply.status, reply.read().decode(errors="replace")
    finally:
        link.close()


def test_nginx_obeys_the_proxy_file(bundles: Path, tmp_path: Path) -> None:
    bundle, front = bundles / "server", free_port()
    back = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(bundle / "server.pem", bundle / "server.key")
    back.socket = served.wrap_socket(back.socket, server_side=True)
    threading.Thread(target=back.serve_forever, daemon=True).start()
    text = (DEPLOY / "nginx.conf").read_text()
    for old, new in (
        ("listen 9092", f"listen 127.0.0.1:{front}"),
        ("127.0.0.1:9093$uri", f"127.0.0.1:{back.server_port}$uri"),
        ("/etc/carefl/", f"{bundle}/"),
        ("/tmp/carefl-nginx", f"{tmp_path}/nginx"),
    ):
        assert old in text, old
        text = text.replace(old, new)
    (tmp_path / "nginx.conf").write_text(text)
    ca = bundle / "ca.crt"
    try:
        if NGINX is None:
            # What remains to be seen without nginx: the stand-in answers whatever reaches it.
            assert ask(back.server_port, ca, "/v1/control/start-run")[0] == 200
            return
        words = [NGINX, "-c", str(tmp_path / "nginx.conf"), "-g", "daemon off;"]
        subprocess.run([*words[:3], "-t"], capture_output=True, check=True)
        (tmp_path / "nginx.pid").unlink(missing_ok=True)  # "-t" leaves an empty one
        with (tmp_path / "nginx.out").open("wb") as log:
            proxy = subprocess.Popen(words, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 30
            while not (tmp_path / "nginx.pid").exists():
                assert proxy.poll() is None, (tmp_path / "nginx.out").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            # Larger than any buffer; the proxy's account could not have kept it on disk here.
            big = bytes(20_000_000)
            found = ask(front, ca, "/v1/fleet/push-messages", big)
            assert found == (200, "/v1/fleet/push-messages 20000000")
            assert ask(front, ca, "/v1/fleet/x?to=/v1/control")[1] == "/v1/fleet/x 0"
            for path in REFUSED:
                assert ask(front, ca, path)[0] == 403, path
            assert ask(front, ca, "/v1/fleet/pull-messages", method="GET")[0] == 403
            assert ask(front, ca, "/v1/fleet/push-messages", claimed=70_000_000)[0] == 413
        finally:
            proxy.terminate()
            proxy.wait(30)
    finally:
        back.shutdown()
        back.server_close()


REFUSED = (
    "/v1/control/start-run",
    "/v1/runtime/pull-messages",
    "/health",
    "/docs",
    "/openapi.json",
    "/",
    "/v1/fleet/",
    "/V1/CONTROL/start-run",
    "/v1/fleet/../control/start-run",
    "/v1/fleet/%2e%2e/control/start-run",
    "/v1/fleet/..%2fcontrol%2fstart-run",
    "/v1/fleet/%252e%252e%252fcontrol%252fstart-run",
    "/v1/fleet/x/../../control/start-run",
    "/v1//control/start-run",
)
