"""A folder with the tiny bundle, for benchmarks that start servers of their own."""

from pathlib import Path

import pytest

from model.checkpoint import Bundle, save_bundle


@pytest.fixture(scope="session")
def folder(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks") / "bundle"
    save_bundle(bundle, folder)
    return folder
