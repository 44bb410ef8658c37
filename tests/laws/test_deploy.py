"""What is deployed beside the server: every metric of the alerts and of the board is one that the server has."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import generate_latest

from app.metrics import Metrics
from tests.support.live import free_port
from tests.support.process import Server
from tests.support.service import sound
from tests.support.signals import make_speech_like

DEPLOY = Path(__file__).parents[2] / "deploy"
BOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "whisper-gpt.json").read_text())
RULES = [rule for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
PANELS = [(panel["title"], target["expr"]) for panel in BOARD["panels"] for target in panel["targets"]]
NAME = re.compile(r"\b(?:whispergpt|process)_\w+")

needs_prometheus = [
    pytest.mark.slow,
    pytest.mark.system,
    pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Prometheus: apt-get install prometheus"),
]


def filled_in(expression: str) -> str:
    """As Grafana sends it."""
    return expression.replace("$__rate_interval", "1m").replace("$instance", ".*")


def names_in(exposition: str) -> set[str]:
    """The names that can be asked for: those of the samples."""
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", exposition, re.M):
        names |= {f"{name}{end}" for end in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}
    return names


def asked_for() -> set[str]:
    expressions = [expression for _, expression in PANELS] + [rule["expr"] for rule in RULES]
    expressions += [variable["definition"] for variable in BOARD["templating"]["list"] if "definition" in variable]
    return {name for expression in expressions for name in NAME.findall(expression)}


def test_metrics_of_board_and_alerts_exist() -> None:
    assert len(asked_for()) > 25
    assert asked_for() <= names_in(generate_latest(Metrics().registry).decode())


def test_board_asks_one_data_source_for_the_chosen_servers() -> None:
    variables = {variable["name"] for variable in BOARD["templating"]["list"]}
    assert variables == {"datasource", "instance"}
    for panel in BOARD["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            assert target["expr"].count("$instance") >= 1 and target["legendFormat"]
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in BOARD["panels"]}) == len(BOARD["panels"])


def test_every_alert_is_tried_both_ways() -> None:
    tests = yaml.safe_load((DEPLOY / "alerts_test.yml").read_text())["tests"]
    tried = {(case["alertname"], bool(case["exp_alerts"])) for test in tests for case in test["alert_rule_test"]}
    assert tried == {(rule["alert"], fires) for rule in RULES for fires in (True, False)}
    assert {rule["labels"]["severity"] for rule in RULES} == {"page", "ticket"}


def promtool(*arguments: str, given: str = "") -> str:
    done = subprocess.run(
        ["promtool", *arguments], cwd=DEPLOY, input=given, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class TestPromtool:
    pytestmark = needs_prometheus

    def test_config_and_rules(self) -> None:
        promtool("check", "config", "prometheus.yml")
        promtool("check", "rules", "alerts.yml")

    def test_alerts_fire_when_they_should(self) -> None:
        promtool("test", "rules", "alerts_test.yml")

    def test_expressions_of_the_board(self, tmp_path: Path) -> None:
        """As recording rules, since promtool checks these."""
        rules = [{"record": f"board:{n}", "expr": filled_in(one)} for n, (_, one) in enumerate(PANELS)]
        file = tmp_path / "board.yml"
        file.write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
        assert f"{len(rules)} rules found" in promtool("check", "rules", str(file))

    def test_names_of_metrics(self) -> None:
        assert promtool("check", "metrics", given=generate_latest(Metrics().registry).decode()) == ""


@pytest.fixture(scope="module")
def server(saved_bundle: Path) -> Iterator[Server]:
    running = Server(saved_bundle)
    yield running
    running.close()


@pytest.fixture(scope="module")
def prometheus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{server.port}"]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(DEPLOY / "alerts.yml", folder)
    port = free_port()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address=127.0.0.1:{port}"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)


def value(prometheus: httpx.Client, expression: str) -> list[float]:
    answer = prometheus.get("/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", (expression, answer)
    return [float(one["value"][1]) for one in answer["data"]["result"]]


class TestPrometheus:
    """A real one scrapes a real server."""

    pytestmark = needs_prometheus

    def test_all_that_is_asked_for_is_answered(self, server: Server, prometheus: httpx.Client) -> None:
        clip = sound(make_speech_like(1.0), form="FLAC")
        end = time.monotonic() + 120
        while True:  # until enough has been scraped for a rate
            for fields in ({"seconds": "0.3"}, {"seconds": "0.3", "stream": "true", "response_format": "pcm"}):
                assert server.client.post("/continue", files={"file": ("a", clip)}, data=fields).status_code == 200
            server.client.post("/continue", files={"file": ("a", b"no audio")})
            time.sleep(1)
            try:
                rate = value(prometheus, 'sum(rate(whispergpt_requests_total{outcome="ok",route="/continue"}[1m]))')
            except httpx.TransportError:
                rate = []
            if rate and rate[0] > 0:
                break
            assert time.monotonic() < end
        assert value(prometheus, "up") == [1.0]
        empty = {title for title, expression in PANELS if not value(prometheus, filled_in(expression))}
        assert empty <= {
            "Turned away, a second", "Clients that left, a second; broken streams",
        }, "where nothing happened of the kind"  # fmt: skip
        scraped = set(prometheus.get("/api/v1/label/__name__/values").json()["data"])
        silent = {"whispergpt_rejected_total", "whispergpt_client_disconnects_total", "whispergpt_streams_broken_total"}
        assert asked_for() - scraped <= silent
        rules = [rule for group in prometheus.get("/api/v1/rules").json()["data"]["groups"] for rule in group["rules"]]
        assert {(rule["name"], rule["health"]) for rule in rules} == {(rule["alert"], "ok") for rule in RULES}
        assert not [rule for rule in rules if rule["state"] == "firing"]
