"""The page's files as they are served. What it does in a browser is in test_browser.py."""

import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

ROOT = Path(__file__).parents[3]
STATIC = ROOT / "app" / "static"
NAMES = sorted(path.name for path in STATIC.iterdir())
MODULES = [name for name in NAMES if name.endswith(".js")]
POLICY = {
    "default-src": "'self'", "object-src": "'none'", "base-uri": "'none'", "form-action": "'none'",
    "frame-ancestors": "'none'",
}  # fmt: skip
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text of the scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] in ("script", "style"):
            self.inline += data.strip()

    def of(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag in tags]


@pytest.fixture(scope="module")
def elements() -> Elements:
    return Elements((STATIC / "index.html").read_text())


def test_page(service: Any) -> None:
    answer = service.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.content == (STATIC / "index.html").read_bytes()


@pytest.mark.parametrize("path", ["/", *(f"/static/{name}" for name in NAMES), "/examples/music.flac"])
def test_headers(service: Any, path: str) -> None:
    answer = service.get(path)
    assert answer.status_code == 200
    directives = (part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert dict(directives) == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    again = service.get(path, headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = service.wait(service.client.head(path))
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(answer.content))


@pytest.mark.parametrize("name", NAMES)
def test_file(service: Any, name: str) -> None:
    """With its type, also where the system's table of types is another."""
    answer = service.get(f"/static/{name}")
    assert answer.content == (STATIC / name).read_bytes()
    assert answer.headers["content-type"].split(";")[0] == TYPES[Path(name).suffix]


@pytest.mark.parametrize("name", ["music.flac", "speech.flac"])
def test_example(service: Any, name: str) -> None:
    answer = service.get(f"/examples/{name}")
    assert answer.content == (ROOT / "examples" / name).read_bytes()
    assert answer.headers["content-type"] == "audio/flac"


@pytest.mark.parametrize(
    "path",
    ["/index.html", "/static/", "/static/none.js", "/static/../main.py", "/static/%2e%2e/main.py",
     "/static/..%2f..%2fpyproject.toml", "/examples/README.md", "/examples/..%2fREADME.md", "/examples/"],
)  # fmt: skip
def test_nothing_else_is_served(service: Any, path: str) -> None:
    answer = service.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


def test_it_cannot_be_posted_to(service: Any) -> None:
    for path in ("/", "/static/page.js", "/examples/music.flac"):
        answer = service.wait(service.client.post(path))
        assert answer.status_code == 405
        assert answer.json()["error"]["code"] == "method_not_allowed"


def test_the_page_is_open_and_the_interface_is_not(serve: Any, clip: bytes) -> None:
    service = serve(api_keys=[SecretStr("secret")])
    for path in ("/", *(f"/static/{name}" for name in NAMES), "/examples/speech.flac"):
        assert service.get(path).status_code == 200
    for path in ("/continue", "/score"):
        assert service.post(path, clip).status_code == 401


def test_limits_are_told(serve: Any) -> None:
    """So that the page need not learn them from refusals; open, as the page is."""
    answer = serve(api_keys=[SecretStr("secret")], max_prompt_seconds=12, max_seconds=7).get("/limits.json")
    assert answer.status_code == 200
    told = answer.json()
    assert (told["max_prompt_seconds"], told["max_seconds"]) == (12, 7)
    assert all(isinstance(value, float) for value in told.values())


def test_it_is_no_part_of_the_described_interface(service: Any) -> None:
    paths = service.get("/openapi.json").json()["paths"]
    assert not [path for path in paths if path == "/" or path.startswith(("/static", "/examples"))]


def test_requests_for_it_are_counted(serve: Any) -> None:
    service = serve()
    service.get("/")
    assert service.value("requests_total", route="/", outcome="ok") == 1


def test_everything_that_the_page_names_is_served(service: Any, elements: Elements) -> None:
    named = [*elements.of("script", "img", "audio", "source"), *elements.of("link", "a")]
    addresses = {address for attributes in named if (address := attributes.get("src") or attributes.get("href"))}
    assert "static/page.js" in addresses
    assert "docs" in addresses
    examples = {f"examples/{attributes['data-example']}" for attributes in elements.of("button")
                if "data-example" in attributes}  # fmt: skip
    assert len(examples) == 2
    for address in addresses | examples:
        assert not address.startswith("/"), "a proxy may serve the page below a folder"
        assert service.get(f"/{address}").status_code == 200, address


def test_nothing_is_inline(elements: Elements) -> None:
    """The policy would forbid it."""
    assert elements.inline == ""
    for _, attributes in elements.found:
        assert not [name for name in attributes if name == "style" or name.startswith("on")]


def test_modules_import_modules_that_exist() -> None:
    seen, waiting = set(), ["page.js"]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            text = (STATIC / name).read_text()
            waiting += re.findall(r'^import .* from "\./([a-z.]+)";$', text, re.M)
            waiting += re.findall(r'(?:new Worker|addModule)\(new URL\("\./([a-z.]+)", import\.meta\.url\)', text)
    assert seen == set(MODULES), "each is used, and each is there"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_comes_from_elsewhere(name: str) -> None:
    text = (STATIC / name).read_text()
    text = text.replace('xmlns="http://www.w3.org/2000/svg"', "")  # a name, not an address
    text = text.replace("https:// or localhost", "")  # in a sentence
    assert re.findall(r"(?:https?|wss?):|[\"'(]//|@import|\bimport\((?!\"\./)", text) == []


def test_modules_are_short() -> None:
    assert {name: lines for name in MODULES if (lines := len((STATIC / name).read_text().splitlines())) > 150} == {}


def test_every_field_has_a_label(elements: Elements) -> None:
    """Inside of it, or by its id."""
    html = (STATIC / "index.html").read_text()
    labelled = {attributes["for"] for attributes in elements.of("label") if "for" in attributes}
    inside = set(re.findall(r'<label[^>]*>[^<]*<input name="(\w+)"', html))
    for attributes in elements.of("input"):
        named = attributes.get("id") in labelled or attributes.get("name") in inside or attributes.get("aria-label")
        assert named, attributes


def test_fields_are_the_interface_s(elements: Elements) -> None:
    from app.continuations.schemas import ContinueForm

    names = {attributes["name"] for attributes in elements.of("input") if "name" in attributes}
    assert names - {"from", "to"} <= set(ContinueForm.model_fields)
    defaults = {
        attributes["name"]: attributes.get("value") for attributes in elements.of("input") if "name" in attributes
    }
    for name in ("seconds", "temperature", "top_p", "top_k"):
        assert float(str(defaults[name])) == ContinueForm.model_fields[name].default


def test_an_installed_package_has_the_page() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packed = {
        path
        for pattern in project["tool"]["setuptools"]["package-data"]["app"]
        for path in (ROOT / "app").glob(pattern)
    }
    assert set(STATIC.iterdir()) <= packed


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "http://127.0.0.1:80/"), ("0.0.0.0", "http://localhost:80/"), ("::1", "http://[::1]:80/"),
     ("::", "http://localhost:80/"), ("studio", "http://studio:80/")],
)  # fmt: skip
def test_the_command_names_an_address_that_a_browser_opens(host: str, address: str) -> None:
    from app.cli.listening import page_address
    from app.settings import Settings

    assert page_address(Settings(host=host, port=80)) == address
