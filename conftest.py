"""Rules for the whole test run: no silent skips in CI, CUDA only where there is any, browser, Helm and Ray if asked."""

import os
from collections.abc import Generator
from typing import Any

import pytest

FORBID_SKIPS = os.environ.get("WHISPERGPT_FORBID_SKIPS") == "1"


def _fail_if_skipped(report: Any, what: str) -> None:
    if FORBID_SKIPS and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{what} was skipped, and WHISPERGPT_FORBID_SKIPS=1 forbids it: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_if_skipped(report, item.nodeid)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_skipped(report, collector.nodeid)
    return report


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects tests marked `cuda` where there is none, and `browser`, `chart` and `ray` unless `-m` names them; they
    are not skips.
    """

    def leave_out(mark: str) -> None:
        left_out = [item for item in items if item.get_closest_marker(mark)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]

    for mark in (
        "browser",
        "chart",
        "ray",
    ):  # their tools are extras of their own: `make test-browser`, `make test-chart`, ...
        if mark not in config.option.markexpr:
            leave_out(mark)
    if any(item.get_closest_marker("cuda") for item in items):
        import torch

        if not torch.cuda.is_available():
            leave_out("cuda")
