"""Imports point downwards only; who may import what is held here."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("app", "model")
    for path in sorted((ROOT / package).rglob("*.py"))
}
HTTP = {"fastapi", "starlette", "uvicorn", "httpx", "python_multipart"}
NUMBA = "model.inference.numba_backend"


def imports(module: str) -> set[str]:
    """Every module that a module imports, wherever in its file; of this repository, the very one."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{module}: a relative import"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= whole & set(FILES) or {node.module}
    return found


IMPORTS = {module: imports(module) for module in FILES}


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def reached(module: str) -> set[str]:
    """All that a module imports, through whatever of this repository."""
    seen: set[str] = set()
    rest = {module}
    while rest:
        seen |= rest
        rest = {name for one in rest for name in IMPORTS.get(one, ())} - seen
    return seen - {module}


def test_app_imports_model_and_never_the_reverse() -> None:
    assert any(within(name, "model") for module in FILES if within(module, "app") for name in IMPORTS[module])
    wrong = {module for module in FILES if within(module, "model") and any(within(n, "app") for n in IMPORTS[module])}
    assert not wrong


@pytest.mark.parametrize("package", ["model", "app.engine", "app.audio", "app.models"])
def test_knows_no_http(package: str) -> None:
    """Not through others either."""
    wrong = {module for module in FILES if within(module, package)
             and any(name.split(".")[0] in HTTP or within(name, "app.server") for name in reached(module))}  # fmt: skip
    assert not wrong


def test_numba_stays_in_its_backend() -> None:
    assert {module for module in FILES if any(within(name, "numba", "llvmlite") for name in IMPORTS[module])}
    for module in FILES:
        if within(module, NUMBA):
            continue
        assert not any(within(name, "numba", "llvmlite") for name in IMPORTS[module]), module
        if module != "model.inference.backend":
            assert not any(within(name, NUMBA) for name in IMPORTS[module]), module


def test_numba_is_imported_only_when_a_backend_is_asked_for() -> None:
    """Not at the top of any module outside: it takes a second."""
    for module, path in FILES.items():
        if within(module, NUMBA):
            continue
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
        assert not any(within(node.module or "", NUMBA) for node in top), module


@pytest.mark.parametrize("module", sorted(FILES))
def test_no_module_imports_itself_through_others(module: str) -> None:
    through = {name for name in reached(module) if module in IMPORTS.get(name, ())}
    assert not through


LAYERS = [
    ("app.cli",),
    ("app.main", "app.client", "app.corpora"),
    ("app.continuations", "app.scores", "app.sessions", "app.system"),
    ("app.prompts",),
    ("app.server",),
    ("app.models",),
    ("app.engine", "app.audio"),
    ("app.metrics", "app.errors", "app.settings"),
    ("app",),
]


def layer(module: str) -> int:
    return next(at for at, packages in enumerate(LAYERS) if within(module, *packages))


@pytest.mark.parametrize("module", sorted(name for name in FILES if within(name, "app")))
def test_the_service_imports_downwards(module: str) -> None:
    below = {name for name in IMPORTS[module] if within(name, "app") and name != "app"}
    assert not {name for name in below if layer(name) < layer(module)}
