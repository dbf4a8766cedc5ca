"""What ``deploy/`` says of files, flags, settings and ports is true of the project."""

from __future__ import annotations

import argparse
import fnmatch
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from guard.cli import Serve
from guard.metrics_server import MetricsServer
from guard.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
COMPOSE = (ROOT / "deploy/compose.yml").read_text(encoding="utf-8")
PROMETHEUS = (ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8")
README = (ROOT / "deploy/README.md").read_text(encoding="utf-8")
DOCKERIGNORE = (ROOT / ".dockerignore").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

TARGETS = ("cpu", "gpu")
PORT = Settings.model_fields["port"].default
METRICS_PORT = Settings.model_fields["metrics_port"].default


def stages() -> dict[str, str]:
    """Return the text of each stage of the Dockerfile by name, continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", DOCKERFILE)
    chunks = re.split(r"^FROM \S+ AS (\S+)\n", joined, flags=re.MULTILINE)
    return dict(zip(chunks[1::2], chunks[2::2], strict=True))


def environment(stage: str) -> dict[str, str]:
    lines = re.findall(r"^ENV (.*)$", stage, re.MULTILINE)
    return dict(pair.split("=", 1) for line in lines for pair in line.split())


def let_in(path: str) -> bool:
    """Tell whether ``.dockerignore`` lets a file of the project into the build context."""
    rules = [line for line in DOCKERIGNORE.splitlines() if line and not line.startswith("#")]
    verdict = True
    for rule in rules:
        pattern = rule.removeprefix("!").removeprefix("**/")
        if any(fnmatch.fnmatch(part, pattern) for part in Path(path).parts):
            verdict = rule.startswith("!")
    return verdict


def healthcheck(stage: str) -> str:
    match = re.search(r'CMD \["python3", "-c", "(.*)"\]', stage)
    assert match is not None
    return match[1]


def test_the_cpu_image_is_what_is_built_where_no_target_is_named() -> None:
    assert [name for name in stages() if "-" not in name] == ["gpu", "cpu"]
    assert list(stages())[-1] == "cpu"


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_the_installed_command_as_a_numeric_user(target: str) -> None:
    stage = stages()[target]
    uid, gid = re.findall(r"^USER (\d+):(\d+)$", stage, re.MULTILINE)[0]
    assert int(uid) > 0
    assert int(gid) > 0
    assert 'ENTRYPOINT ["guard"]' in stage
    assert f'CMD ["{Serve.name}"]' in stage
    assert "guard" in PROJECT["scripts"]


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_exposes_the_ports_it_sets(target: str) -> None:
    stage = stages()[target]
    assert f"EXPOSE {PORT} {METRICS_PORT}" in stage
    assert environment(stage)["GUARD_PORT"] == str(PORT)
    assert environment(stage)["GUARD_METRICS_PORT"] == str(METRICS_PORT)


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_sets_settings_that_are_taken(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {key: v for key, v in environment(stages()[target]).items() if key.startswith("GUARD_")}
    for key, value in given.items():
        assert key.removeprefix("GUARD_").lower() in Settings.model_fields
        monkeypatch.setenv(key, value)
    settings = Settings()
    assert settings.repository == Path("/models")
    assert settings.device == {"cpu": "cpu", "gpu": "cuda"}[target]


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_keeps_the_names_of_models_to_itself(target: str) -> None:
    assert environment(stages()[target])["ORT_DISABLE_TELEMETRY"] == "1"


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_is_installed_from_the_pinned_versions(target: str) -> None:
    build = stages()[f"{target}-build"]
    assert "install --constraint constraints.txt " in build
    assert f'".[{target},images]"' in build
    assert ('"${ONNXRUNTIME_GPU}"' in build) == (target == "gpu")
    assert target in PROJECT["optional-dependencies"]


def test_what_is_copied_is_there_and_let_into_the_build() -> None:
    copied = re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
    sources = {source for line in copied for source in line.split()[:-1]}
    assert sources == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "guard", "calibration"}
    for source in sources:
        assert (ROOT / source).exists(), source
        assert let_in(source), source


def test_what_the_image_does_not_need_stays_outside_the_build() -> None:
    outside = (".git", ".venv", "build", "tests", "benchmarks", "deploy", "guard/rpc/__pycache__")
    assert [path for path in outside if let_in(path)] == []


def test_the_wheel_and_the_cuda_image_agree() -> None:
    assert re.search(r"^ARG CUDA_IMAGE=nvidia/cuda:12\.\d+\.\d+-cudnn-runtime-", DOCKERFILE, re.MULTILINE)
    assert 'ARG ONNXRUNTIME_GPU="onnxruntime-gpu>=1.20,<1.27"' in DOCKERFILE
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "onnxruntime-gpu" not in pins, "pin it in the Dockerfile, beside the CUDA it is built for"


def test_both_images_check_their_health_alike() -> None:
    assert healthcheck(stages()["cpu"]) == healthcheck(stages()["gpu"])


@pytest.mark.parametrize(("state", "code"), [("ready", 0), ("loading", 1), ("down", 1)])
def test_the_health_check_passes_a_guard_that_is_ready_and_no_other(state: str, code: int) -> None:
    server = MetricsServer(CollectorRegistry(), host="127.0.0.1", port=0, ready=lambda: state == "ready")
    port = server.start()
    if state == "down":
        server.stop()
    checked = subprocess.run(
        [sys.executable, "-I", "-c", healthcheck(stages()["cpu"])],
        env={"GUARD_METRICS_PORT": str(port), "http_proxy": "http://127.0.0.1:1"},
        stderr=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    server.stop()
    assert checked.returncode == code


def test_the_files_and_the_target_of_compose_are_there() -> None:
    assert "context: .." in COMPOSE
    assert (ROOT / re.findall(r"dockerfile: (\S+)", COMPOSE)[0]).is_file()
    assert re.findall(r"target: (\S+)", COMPOSE)[0] in TARGETS
    mounts = re.findall(r"- (\./\S+?):(\S+):ro", COMPOSE)
    assert len(mounts) == 5
    for source, place in mounts:
        assert (ROOT / "deploy" / source).is_file()
        assert Path(place).name == Path(source).name


def test_compose_mounts_the_repository_read_only_where_the_image_looks_for_it() -> None:
    assert re.search(r"\$\{MODEL_REPOSITORY:\?[^}]*\}:/models:ro", COMPOSE)
    assert environment(stages()["cpu"])["GUARD_REPOSITORY"] == "/models"


def test_compose_publishes_the_ports_of_the_image_on_this_machine_only() -> None:
    published = re.findall(r'- "127\.0\.0\.1:(\d+):(\d+)"', COMPOSE)
    assert published == [(str(p), str(p)) for p in (PORT, METRICS_PORT, 9090, 3000)]


def test_compose_gives_the_guard_longer_to_stop_than_it_takes() -> None:
    grace = int(re.findall(r"stop_grace_period: (\d+)s", COMPOSE)[0])
    assert grace > Settings.model_fields["drain_timeout_s"].default


def test_the_variables_of_compose_are_settings_with_their_defaults() -> None:
    given = re.findall(r"(GUARD_\w+): \$\{\1:-(\w+)\}", COMPOSE)
    assert given
    for variable, default in given:
        assert Settings.model_fields[variable.removeprefix("GUARD_").lower()].default == default


def test_prometheus_scrapes_the_port_of_the_service() -> None:
    (target,) = re.findall(r'^      - targets: \["(.*)"\]$', PROMETHEUS, re.MULTILINE)
    assert target == f"guard:{METRICS_PORT}"
    assert re.search(r"^  guard:$", COMPOSE, re.MULTILINE)
    assert "  - job_name: guard\n" in PROMETHEUS


@pytest.mark.parametrize(
    "text", [README, (ROOT / "deploy/prometheus/RUNBOOK.md").read_text(encoding="utf-8")]
)
def test_the_documents_name_settings_that_are_there(text: str) -> None:
    variables = set(re.findall(r"\bGUARD_([A-Z_]+)\b", text))
    keys = set(re.findall(r"`(max_\w+|on_uncheckable|\w+_timeout_s|policy)\b", text))
    assert variables | keys
    assert [name for name in variables if name.lower() not in Settings.model_fields] == []
    assert [name for name in keys if name not in Settings.model_fields] == []


def test_the_documents_link_to_files_that_are_there() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(links) >= 5
    assert [link for link in links if not (ROOT / "deploy" / link).is_file()] == []


def test_the_flags_of_the_documents_are_flags_of_serve() -> None:
    parser = argparse.ArgumentParser()
    Serve().add_arguments(parser)
    known = {option for action in parser._actions for option in action.option_strings}
    given = set(re.findall(r"serve (--[a-z-]+)", README))
    assert given == {"--config"}
    assert given <= known
