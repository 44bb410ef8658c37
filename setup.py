"""What pyproject.toml cannot say: a wheel carries weights/default inside of the package `model`, which finds it there.

An editable install carries nothing: there the weights lie beside the package (`model/default_bundle.py`).
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

BUNDLE = Path("weights/default")


class WithWeights(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.mkpath(str(self._carried()))
            for path in self._weights():
                self.copy_file(str(path), str(self._carried() / path.name))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        carried = [] if self.editable_mode else [str(self._carried() / path.name) for path in self._weights()]
        return [*super().get_outputs(include_bytecode), *carried]

    def _carried(self) -> Path:
        return Path(self.build_lib) / "model" / BUNDLE

    def _weights(self) -> list[Path]:
        found = sorted(path for path in BUNDLE.iterdir() if path.is_file())
        assert found, f"no weights in {BUNDLE}"
        return found


setup(cmdclass={"build_py": WithWeights})
