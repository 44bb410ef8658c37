"""What a file for Ray Serve may say: every name is known, and what cannot work is refused with its name."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.main import UNREAD
from deploy.ray_autoscaling import ByRequests
from deploy.ray_config import BESIDE, ConfigError, RayConfig, read_file

ROOT = Path(__file__).parents[2]


def test_the_file_that_is_here_is_one() -> None:
    file = read_file(ROOT / "deploy" / "ray.yaml")
    assert file.application.args.replicas.max == 4 and file.application.args.resolved.log_format == "json"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("aplications: []", "aplications: Extra inputs are not permitted"),
        ("http_options: {prot: 1}", "http_options.prot: Extra inputs"),
        ("applications: [{args: {replicas: {mx: 4}}}]", "applications.0.args.replicas.mx: Extra inputs"),
        ("applications: [{args: {settings: {thread: 1}}}]", "no settings of a replica: thread"),
        ("applications: [{args: {settings: {port: 1}}}]", "port; Ray's proxies listen"),
        ("applications: [{args: {settings: {processes: 2}}}]", "its replicas are the processes"),
        ("applications: [{args: {settings: {queue: -1}}}]", "queue: Input should be greater"),
        ("applications: [{deployments: []}]", "deployments: Extra inputs"),
        ("applications: [{route_prefix: /v2}]", "route_prefix: Input should be '/'"),
        ("applications: [{args: {max_ongoing_requests: 5}}]", "max_ongoing_requests: 5 are fewer than"),
        ("applications: [{args: {replicas: {min: 3, max: 2}}}]", "max is 2, below min, 3"),
        ("applications: [{args: {resources: {gpus: 0.5}}}]", "the setting device is cpu"),
        ("applications: [", "is no YAML"),
        ("- one", "file: Input should be"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "ray.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"ray\.yaml") as error:
        read_file(tmp_path / "ray.yaml")
    assert told in str(error.value)


def test_a_key_is_not_told(tmp_path: Path) -> None:
    """Not by our own message, and not by pydantic's, which Ray shows."""
    settings: dict[str, Any] = {"api_keys": ["secret-key", ""], "queue": "secret-key"}
    with pytest.raises(ValidationError) as error:
        RayConfig.model_validate({"settings": settings})
    assert "api_keys" in str(error.value) and "secret-key" not in str(error.value)


def test_ray_hands_over_more_than_a_replica_takes() -> None:
    config = RayConfig(settings={"slots": 5, "threads": 2, "queue": 3})
    assert config.ongoing == 6 + 3 + UNREAD + BESIDE, "slots are rounded up to whole decode workers"
    assert RayConfig(settings={"threads": 1}).ongoing == 32 + 16 + UNREAD + BESIDE
    assert RayConfig(max_ongoing_requests=500).ongoing == 500


def test_a_replica_is_killed_after_it_had_the_time_to_drain() -> None:
    assert RayConfig(settings={"drain_seconds": 60}).shutdown_seconds == 75
    assert RayConfig(settings={"drain_seconds": 1, "drain_grace_seconds": 7}).shutdown_seconds == 22


class Told:
    """As Ray tells a policy of the replicas."""

    def __init__(self, **metrics: list[float]) -> None:
        self.target_num_replicas = 3
        self.aggregated_metrics = {name: dict(enumerate(values)) for name, values in metrics.items()}


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        (Told(), 3),
        (Told(running=[24.0, 24.0], waiting=[0.0, 0.0]), 2),
        (Told(running=[30.0, 30.0], waiting=[0.0, 0.0]), 2.5),
        (Told(running=[4.0], waiting=[5.0]), 5),
        (Told(running=[0.0, 0.0, 0.0], waiting=[0.0, 0.0, 0.0]), 0),
    ],
    ids=["nobody told", "at the target", "above it", "some wait", "idle"],
)
def test_how_many_replicas_are_wanted(told: Told, wanted: float) -> None:
    assert ByRequests(running=24, waiting=1)(told) == (wanted, {})
