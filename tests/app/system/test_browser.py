"""The page in a real browser, whose microphone plays a file, on a real server with the shipped weights.

`make test-browser` runs it. CHROMIUM names a browser; without it: the system's Chromium, or the one of
`playwright install chromium`.
"""

import base64
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from model.checkpoint import random_bundle, save_bundle

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[3]
BUNDLE = Path(os.environ.get("WHISPERGPT_TEST_BUNDLE", ROOT / "weights" / "default")).absolute()
SPEECH = ROOT / "examples" / "speech.flac"
SPEECH_FRAMES = 475
LEAD_IN_FRAMES = 3 * 75  # of the clip are heard before its continuation
WAIT_MS = 60_000  # for what takes a second on an idle machine
SPY = """
window.played = [];
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (when, offset) {
  const { sampleRate, length } = this.buffer;
  window.played.push({ at: when * sampleRate, samples: length - Math.round(offset * sampleRate),
                       rate: this.context.sampleRate });
  return start.call(this, when, offset);
};
"""
PAINTED = """([left, right, top, bottom]) => {
  const { width, height } = canvas;
  const copy = new OffscreenCanvas(width, height).getContext("2d");
  copy.drawImage(canvas, 0, 0);
  const [x, y] = [Math.ceil(left * width), Math.ceil(top * height)];
  const [columns, rows] = [Math.floor(right * width) - x, Math.floor(bottom * height) - y];
  const { data } = copy.getImageData(x, y, columns, rows);
  const painted = new Set();
  for (let at = 0; at < data.length; at += 4) {
    const [red, green, blue, alpha] = data.slice(at, at + 4);
    const grey = Math.max(red, green, blue) - Math.min(red, green, blue) < 60;  // the axis
    if (alpha > 100 && !grey) painted.add((at / 4) % columns);
  }
  return painted.size / columns;
}"""


@contextmanager
def server(log: Path, *flags: str) -> Iterator[httpx.Client]:
    """A server in a process of its own; a client whose address is its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WHISPERGPT_")}
    command = [sys.executable, "-m", "app.cli.main", "serve", "--port", str(port), *flags]
    with log.open("w") as out, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
        try:
            end = time.monotonic() + 300  # the first start compiles the step
            while True:
                try:
                    assert client.get("/readyz").status_code == 200
                    break
                except httpx.TransportError:
                    assert process.poll() is None and time.monotonic() < end, log.read_text()
                    time.sleep(0.1)
            yield client
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The server that most tests use: one slot, and nobody may wait for it."""
    limits = ("--slots", "1", "--queue", "0", "--max-seconds", "600", "--max-prompt-seconds", "20")
    with server(tmp_path_factory.mktemp("served") / "log", "--bundle", str(BUNDLE), *limits) as client:
        yield client


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium whose microphone hears the spoken example, again and again."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=WAIT_MS)
    heard = tmp_path_factory.mktemp("microphone") / "heard.wav"
    samples, rate = soundfile.read(SPEECH)
    soundfile.write(heard, samples, rate, subtype="PCM_16")
    flags = [
        "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={heard}", "--host-resolver-rules=MAP plain.test 127.0.0.1",
    ]  # fmt: skip
    if os.getuid() == 0:
        flags.append("--no-sandbox")  # Chromium does not start as root with it
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=flags)
        yield running
        running.close()


class Pages:
    """Opens the page, and hears what its console says and whom it asks."""

    def __init__(self, browser: Any, api: httpx.Client) -> None:
        self.browser, self.address = browser, str(api.base_url)
        self.said: list[str] = []
        self.asked: set[str] = set()
        self.contexts: list[Any] = []

    def open(self, script: str = "", address: str = "", **options: Any) -> Any:
        context = self.browser.new_context(**({"viewport": {"width": 1000, "height": 900}} | options))
        self.contexts.append(context)
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        page.on("console", lambda told: self.said.append(told.text) if told.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.add(request.url.split("/")[2]))
        page.add_init_script(SPY + script)
        page.goto(address or self.address)
        return page

    def forgive_refusals(self) -> None:
        """A browser reports every status from 400 on in its console."""
        self.said = [text for text in self.said if "the server responded with a status of 4" not in text]


@pytest.fixture
def pages(browser: Any, api: httpx.Client) -> Iterator[Pages]:
    pages = Pages(browser, api)
    yield pages
    for context in pages.contexts:
        context.close()
    assert pages.said == []
    assert {host.split(":")[0] for host in pages.asked} <= {"127.0.0.1", "plain.test"}


def has_text(page: Any, selector: str, text: str | re.Pattern[str]) -> None:
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_text(text)


def enabled(page: Any, selector: str) -> None:
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_be_enabled()


def choose(page: Any, file: Any) -> None:
    page.set_input_files("#file", file)
    enabled(page, "#go")


def settings(page: Any, **fields: Any) -> None:
    page.evaluate("document.getElementById('details').open = true")
    for name, value in fields.items():
        field = page.locator(f"#settings [name={name}]")
        if isinstance(value, bool):
            field.set_checked(value)
        else:
            field.fill(str(value))
            field.blur()


def make(page: Any) -> None:
    page.click("#go")
    has_text(page, "#status", "Made.")


def painted(page: Any, left: float, right: float, top: float, bottom: float) -> float:
    """The share of the columns of a part of the picture that hold colour."""
    page.wait_for_timeout(100)  # it is drawn with the screen's next picture
    return float(page.evaluate(PAINTED, [left, right, top, bottom]))


def metric(api: httpx.Client, name: str) -> float:
    found = re.search(rf"^whispergpt_{name} (\S+)$", api.get("/metrics").text, re.M)
    return float(found[1]) if found else 0.0


def until(holds: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_recording_goes_on(pages: Pages, api: httpx.Client) -> None:
    page = pages.open(permissions=["microphone"])
    has_text(page, "#status", "Choose a clip first.")
    assert page.is_disabled("#go")
    page.click("#record")
    until(lambda: float(page.locator("#level").get_attribute("value") or 0) > 0.1, 5)  # it hears, and shows it
    has_text(page, "#record", re.compile(r"\(3 s\)"))
    page.click("#record")
    has_text(page, "#status", re.compile(r"^recording\.webm: 3\.\d\d s\.$"))
    settings(page, seconds=2, seed=11)
    make(page)
    tokens = int(re.search(r"(\d+) tokens", page.inner_text("#clip-figures"))[1])  # type: ignore[index]
    assert 3 * 75 - 20 < tokens < 4 * 75
    assert "2.00 s, 150 tokens" in page.inner_text("#made-figures")
    has_text(page, "#seed-used", "11")
    played = page.evaluate("played")
    assert sum(each["samples"] for each in played) == 320 * (LEAD_IN_FRAMES + 150)
    assert {each["rate"] for each in played} == {24_000}, "no resampling, which would click where pieces meet"
    for before, after in itertools.pairwise(played):
        assert after["at"] == pytest.approx(before["at"] + before["samples"], abs=0.01), "without a gap"
    share = tokens / (tokens + 150)
    for left, right in ((0, share), (share, 1)):
        assert painted(page, left, right, 0, 0.6) > 0.9, "waveform"
        assert painted(page, left, right, 0.65, 0.93) > 0.9, "likelihoods"
    assert metric(api, "slots_used") == 0


@pytest.mark.parametrize("include_prompt", [True, False], ids=["with-prompt", "bare"])
def test_the_download_is_the_interface_s_answer(
    pages: Pages, api: httpx.Client, tmp_path: Path, include_prompt: bool
) -> None:
    page = pages.open()
    choose(page, SPEECH)
    seed = 2**60 + 1  # more digits than a JavaScript number keeps
    settings(page, seconds=1.5, temperature=0.9, top_p=0.95, top_k=200, seed=seed, include_prompt=include_prompt)
    make(page)
    with page.expect_download() as waiting:
        page.click("#download")
    assert waiting.value.suggested_filename == "speech-continued.wav"
    waiting.value.save_as(tmp_path / "made.wav")
    form = {"seconds": "1.5", "temperature": "0.9", "top_p": "0.95", "top_k": "200", "seed": str(seed),
            "include_prompt": str(include_prompt).lower(), "response_format": "wav"}  # fmt: skip
    answer = api.post("/continue", files={"file": SPEECH.read_bytes()}, data=form)
    assert (tmp_path / "made.wav").read_bytes() == answer.content
    samples, rate = soundfile.read(tmp_path / "made.wav")
    assert (len(samples), rate) == (320 * (113 + SPEECH_FRAMES * include_prompt), 24_000)
    has_text(page, "#seed-used", str(seed))
    share = SPEECH_FRAMES / (SPEECH_FRAMES + 113)
    assert painted(page, 0, share, 0.65, 0.93) > 0.9, "the prompt's likelihoods are drawn in either case"


def test_the_strip_tells_what_the_interface_does(pages: Pages, api: httpx.Client) -> None:
    page = pages.open()
    choose(page, SPEECH)
    settings(page, seconds=1, seed=3, include_prompt=False)
    make(page)
    form = {"seconds": "1", "seed": "3"}
    made = api.post("/continue", files={"file": SPEECH.read_bytes()}, data=form).json()["choices"][0]
    score = {"detail": "tokens"}
    clip = api.post("/score", files={"file": SPEECH.read_bytes()}, data=score).json()["results"][0]
    tokens, logprobs = clip["codes"] + made["tokens"], clip["logprobs"] + made["logprobs"]
    box = page.locator("#timeline").bounding_box()
    for frame in (0, 100, SPEECH_FRAMES - 1, SPEECH_FRAMES, len(tokens) - 1):
        page.mouse.move(box["x"] + (frame + 0.5) / len(tokens) * box["width"], box["y"] + box["height"] / 2)
        told = f"token {tokens[frame]}, log-likelihood {logprobs[frame]:.2f}"
        has_text(page, "#readout", re.compile(re.escape(told) + "$"))


def test_stop_ends_the_server_s_work(pages: Pages, api: httpx.Client) -> None:
    page = pages.open()
    choose(page, SPEECH)
    settings(page, seconds=600, include_prompt=False)
    before = metric(api, 'client_disconnects_total{stage="step"}')
    page.click("#go")
    has_text(page, "#status", "Playing while it is made…")
    assert page.evaluate("played.length") > 0
    assert metric(api, "slots_used") == 1, "it is heard before it is made"
    has_text(page, "#go", "Stop")
    page.click("#go")
    until(lambda: metric(api, "slots_used") == 0, 5)
    has_text(page, "#status", "Stopped.")
    has_text(page, "#go", "Continue")
    assert metric(api, 'client_disconnects_total{stage="step"}') == before + 1
    enabled(page, "#download")  # what was made until then
    settings(page, seconds=0.5)
    make(page)  # and the only slot is free


def test_bad_file(pages: Pages) -> None:
    page = pages.open()
    choose(page, {"name": "notes.wav", "mimeType": "audio/wav", "buffer": b"no audio at all, in any format"})
    page.click("#go")
    has_text(page, "#error", re.compile("^Not a known audio file: send WAV"))
    has_text(page, "#go", "Continue")
    assert page.is_disabled("#download")
    pages.forgive_refusals()
    choose(page, SPEECH)
    assert page.is_hidden("#error")
    settings(page, seconds=0.5)
    make(page)


def test_a_part_of_a_long_file(pages: Pages, tmp_path: Path) -> None:
    samples, rate = soundfile.read(SPEECH)
    soundfile.write(tmp_path / "long.wav", np.tile(samples, 4), rate)
    page = pages.open()
    choose(page, tmp_path / "long.wav")
    settings(page, seconds=1)
    page.click("#go")
    has_text(page, "#error", "The audio is longer than the 20 s that are taken.")
    pages.forgive_refusals()
    settings(page, **{"from": 2, "to": 5})
    make(page)
    assert "3.00 s, 225 tokens" in page.inner_text("#clip-figures")


def test_too_much(pages: Pages, api: httpx.Client) -> None:
    """The server's own words, for a field out of its range and when there is no place."""
    page = pages.open()
    choose(page, SPEECH)
    settings(page, seconds=1000)
    page.click("#go")
    has_text(page, "#error", "Seconds: at most 600.")
    settings(page, seconds=1)
    with api.stream("POST", "/continue", files={"file": SPEECH.read_bytes()},
                    data={"seconds": "600", "stream": "true"}) as other:  # fmt: skip
        content = other.iter_bytes()  # kept: a generator that is dropped closes its connection
        next(content)
        page.click("#go")
        has_text(page, "#error", re.compile(r"Try again in \d+ s\.$"))
    until(lambda: metric(api, "slots_used") == 0, 5)
    pages.forgive_refusals()
    make(page)


def test_a_file_that_is_too_large(pages: Pages, tmp_path: Path) -> None:
    """The server answers while the browser still sends; whether it hears that is the system's matter."""
    with (tmp_path / "large.wav").open("wb") as file:
        file.truncate(200 * 2**20)
    page = pages.open()
    choose(page, tmp_path / "large.wav")
    page.click("#go")
    has_text(page, "#error", re.compile("^The body may hold 168 MiB|did not take the whole file"))
    pages.forgive_refusals()
    pages.said = [text for text in pages.said if "net::ERR_CONNECTION" not in text]


DELTA = 'event: audio.delta\ndata: {"index": 0, "audio": "%s", "tokens": [1, 2], "logprobs": [-1.0, -2.0]}\n\n'
BROKEN = {
    "error-event": (
        200, 'event: audio.error\ndata: {"error": {"message": "the server is shutting down", "code": "draining"}}\n\n',
        "The server is shutting down.",
    ),
    "cut": (200, 'event: audio.de', "The connection to the server was cut."),
    "proxy": (502, "<h1>Bad gateway</h1>", "The server answered with status 502."),
}  # fmt: skip


@pytest.mark.parametrize(("status", "end", "told"), BROKEN.values(), ids=BROKEN)
def test_what_breaks_off(pages: Pages, status: int, end: str, told: str) -> None:
    """What came before is kept; the words are the server's where it has any."""
    page = pages.open()
    choose(page, SPEECH)
    settings(page, include_prompt=False)
    begun = DELTA % base64.b64encode(np.full(640, 8_000, "<i2").tobytes()).decode() if status == 200 else ""
    headers = {"content-type": "text/event-stream", "x-whispergpt-prompt-tokens": str(SPEECH_FRAMES)}
    page.route("**/continue", lambda route: route.fulfill(status=status, headers=headers, body=begun + end))
    page.click("#go")
    has_text(page, "#error", told)
    has_text(page, "#go", "Continue")
    assert sum(each["samples"] for each in page.evaluate("played")) == len(begun and bytes(640))
    assert page.is_enabled("#download") == bool(begun)
    pages.said = [text for text in pages.said if "502" not in text]
    page.unroute("**/continue")
    settings(page, seconds=0.5)
    make(page)


def test_no_server(pages: Pages) -> None:
    page = pages.open()
    choose(page, SPEECH)
    page.route("**/continue", lambda route: route.abort("connectionrefused"))
    page.click("#go")
    has_text(page, "#error", re.compile("^The server does not answer"))
    assert page.is_enabled("#play"), "the clip can still be heard"
    pages.said = [text for text in pages.said if "net::ERR_CONNECTION_REFUSED" not in text]


def test_a_key_is_asked_for(browser: Any, tmp_path: Path) -> None:
    save_bundle(random_bundle(), tmp_path / "bundle")
    with server(tmp_path / "log", "--bundle", str(tmp_path / "bundle"), "--api-keys", "open sesame") as api:
        pages = Pages(browser, api)
        page = pages.open()
        choose(page, SPEECH)
        settings(page, seconds=0.5)
        assert page.is_hidden("#key")
        page.click("#go")
        has_text(page, "#error", re.compile("valid key"))
        assert page.evaluate("document.activeElement.id") == "key"
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        has_text(page, "#error", re.compile("valid key"))
        page.fill("#key", "open sesame")
        page.keyboard.press("Enter")
        has_text(page, "#status", "Made.")
        assert page.is_hidden("#key")
        assert page.is_hidden("#error")
        pages.forgive_refusals()
        assert pages.said == []
        page.context.close()


@pytest.mark.parametrize(
    ("script", "told"),
    [("NotAllowedError", "does not allow the microphone"), ("NotFoundError", "There is no microphone")],
)
def test_no_microphone(pages: Pages, script: str, told: str) -> None:
    page = pages.open(f"MediaDevices.prototype.getUserMedia = async () => {{ throw new DOMException('', '{script}') }}")
    page.click("#record")
    has_text(page, "#error", re.compile(told))
    has_text(page, "#record", "Record")


def test_plain_http_from_elsewhere(pages: Pages) -> None:
    """No microphone there, and a sentence that says so; the rest works."""
    page = pages.open(address=pages.address.replace("127.0.0.1", "plain.test"))
    assert page.evaluate("isSecureContext") is False
    has_text(page, "#no-microphone", re.compile("https:// or localhost"))
    assert page.is_disabled("#record")
    choose(page, SPEECH)
    settings(page, seconds=0.5)
    make(page)
    assert sum(each["samples"] for each in page.evaluate("played")) == 320 * (LEAD_IN_FRAMES + 38)


def test_the_description_is_drawn(pages: Pages) -> None:
    """Swagger UI, whose scripts come from this server as well."""
    page = pages.open(address=f"{pages.address}/docs")
    has_text(page, "#operations-continue-post_continue_continue_post .opblock-summary-path", re.compile("/.?continue"))


def test_by_keyboard_alone(pages: Pages) -> None:
    page = pages.open()
    page.get_by_role("button", name="A piano example").focus()
    page.keyboard.press("Enter")
    enabled(page, "#go")
    settings(page, seconds=1)
    page.get_by_role("button", name="Continue").focus()
    page.keyboard.press("Enter")
    has_text(page, "#status", "Made.")
    slider = page.get_by_role("slider", name="Position in the sound")
    slider.focus()
    if page.inner_text("#play") == "Pause":
        page.keyboard.press(" ")
    has_text(page, "#play", "Play")
    page.keyboard.press("Home")
    assert float(slider.get_attribute("aria-valuenow")) == 0
    page.keyboard.press("ArrowRight")
    assert float(slider.get_attribute("aria-valuenow")) == 0.5
    page.keyboard.press("End")
    assert slider.get_attribute("aria-valuetext") == "8.5 of 8.5 seconds"
    page.keyboard.press("ArrowLeft")
    spoken = r"8\.0 of 8\.5 seconds, token \d+, log-likelihood -?\d+\.\d\d"
    assert re.fullmatch(spoken, slider.get_attribute("aria-valuetext"))
    page.keyboard.press("End")
    has_text(page, "#play", "Play again")
    before = page.evaluate("played.length")
    page.keyboard.press("Enter")
    has_text(page, "#play", "Pause")
    assert page.evaluate("played.slice(-1)[0].samples") > 0
    assert page.evaluate("played.length") > before


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1200])
def test_it_fits(pages: Pages, width: int, scheme: str) -> None:
    page = pages.open(viewport={"width": width, "height": 700}, color_scheme=scheme)
    choose(page, SPEECH)
    settings(page, seconds=0.5)
    make(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) > 3 * 128) == (scheme == "light")
