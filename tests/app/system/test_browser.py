"""The page in a real browser, whose microphone plays a file, on a real server with the shipped weights.

`make test-browser` runs it. CHROMIUM names a browser; without it: the system's Chromium, or the one of
`playwright install chromium`. Pictures of the page are left in build/page, or where SCREENSHOTS says, to be looked at.
"""

import base64
import csv
import io
import itertools
import os
import re
import shlex
import shutil
import signal
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

from tests.support.live import free_port

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[3]
BUNDLE = Path(os.environ.get("WHISPERGPT_TEST_BUNDLE", ROOT / "weights" / "default")).absolute()
SPEECH = ROOT / "examples" / "speech.flac"
SPEECH_FRAMES = 475
MUSIC = ROOT / "examples" / "music.flac"
SCREENSHOTS = Path(os.environ.get("SCREENSHOTS", ROOT / "build" / "page"))
LEAD_IN_FRAMES = 3 * 75  # of the clip are heard before its continuation
MINUS = "\N{MINUS SIGN}"
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
PAINTED = """([id, left, right, top, bottom]) => {
  const canvas = document.getElementById(id);
  const { width: all, height } = canvas;
  const gutter = Math.ceil(34 * all / canvas.clientWidth);  // the scales
  const width = all - gutter;
  const copy = new OffscreenCanvas(all, height).getContext("2d");
  copy.drawImage(canvas, 0, 0);
  const [x, y] = [gutter + Math.ceil(left * width), Math.ceil(top * height)];
  const [columns, rows] = [gutter + Math.floor(right * width) - x, Math.floor(bottom * height) - y];
  const { data } = copy.getImageData(x, y, columns, rows);
  const painted = new Set();
  for (let at = 0; at < data.length; at += 4) {
    const [red, green, blue, alpha] = data.slice(at, at + 4);
    const grey = Math.max(red, green, blue) - Math.min(red, green, blue) < 60;  // the axis
    if (alpha > 100 && !grey) painted.add((at / 4) % columns);
  }
  return painted.size / columns;
}"""

WAVEFORM, SPECTROGRAM, LIKELIHOODS = (0, 0.18), (0.25, 0.58), (0.64, 0.7)  # rows of the picture: top and bottom


@contextmanager
def server(log: Path, *flags: str) -> Iterator[httpx.Client]:
    """A server in a process of its own; a client whose address is its own."""
    port = free_port()
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


def has_count(page: Any, selector: str, count: int) -> None:
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_count(count)


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


def nats(value: float) -> str:
    """As the page writes it, with a true minus sign."""
    return f"{value:.2f} nats".replace("-", "\N{MINUS SIGN}")


def make(page: Any) -> None:
    page.click("#go")
    has_text(page, "#status", "Made.")


def painted(page: Any, left: float, right: float, top: float, bottom: float, *, canvas: str = "canvas") -> float:
    """The share of the columns of a part of the picture that hold colour."""
    page.wait_for_timeout(100)  # it is drawn with the screen's next picture
    return float(page.evaluate(PAINTED, [canvas, left, right, top, bottom]))


def metric(api: httpx.Client, name: str) -> float:
    found = re.search(rf"^whispergpt_{name} (\S+)$", api.get("/metrics").text, re.M)
    return float(found[1]) if found else 0.0


def outcomes(api: httpx.Client, route: str) -> int:
    """How many requests of a route have had their answer."""
    lines = re.findall(rf'^whispergpt_requests_total{{.*route="{route}".*}} (\S+)$', api.get("/metrics").text, re.M)
    return round(sum(map(float, lines)))


def until(holds: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_recording_goes_on(pages: Pages, api: httpx.Client) -> None:
    page = pages.open(permissions=["microphone"])
    has_text(page, "#status", "Choose a clip first.")
    assert page.is_disabled("#go")
    settings(page, seconds=2, seed=11)
    sessions, uploads = (outcomes(api, route) for route in ("/v1/audio/session", "/continue"))
    page.click("#record")
    until(lambda: float(page.locator("#level").get_attribute("value") or 0) > 0.1, 5)  # it hears, and shows it
    has_text(page, "#record", re.compile(r"\(3 s\)"))
    has_text(page, "#heard-told", re.compile(rf"^Log-likelihood so far: {MINUS}\d+\.\d\d nats per token$"))
    for row in (WAVEFORM, SPECTROGRAM, LIKELIHOODS):
        assert painted(page, 0, 0.4, *row, canvas="heard-canvas") > 0.3, "drawn while it is recorded"
    page.click("#record")
    has_text(page, "#status", "Made.")
    assert page.is_hidden("#heard")
    until(lambda: outcomes(api, "/v1/audio/session") == sessions + 1, 5)
    assert outcomes(api, "/continue") == uploads, "nothing was uploaded: the session had heard it"
    tokens = int(re.search(r"(\d+) tokens", page.inner_text("#clip-figures"))[1])  # type: ignore[index]
    axis = float(page.get_by_role("slider", name="Position in the sound").get_attribute("aria-valuemax"))
    assert tokens >= 3 * 75 and tokens == pytest.approx((axis - 2) * 75, abs=5), "all that was recorded"
    assert "2.00 s, 150 tokens" in page.inner_text("#made-figures")
    has_text(page, "#seed-used", "11")
    played = page.evaluate("played")
    assert sum(each["samples"] for each in played) == 320 * (LEAD_IN_FRAMES + 150)
    assert {each["rate"] for each in played} == {24_000}, "no resampling, which would click where pieces meet"
    for before, after in itertools.pairwise(played):
        assert after["at"] == pytest.approx(before["at"] + before["samples"], abs=0.01), "without a gap"
    share = tokens / (tokens + 150)
    for left, right in ((0, share), (share, 1)):
        assert painted(page, left, right, *WAVEFORM) > 0.9
        assert painted(page, left, right, *SPECTROGRAM) > 0.5  # pauses are black
        assert painted(page, left, right, *LIKELIHOODS) > 0.9
    assert metric(api, "slots_used") == 0


def test_a_recording_is_uploaded_where_there_can_be_no_session(pages: Pages, api: httpx.Client) -> None:
    page = pages.open(
        "window.WebSocket = class { constructor() { throw new Error('none') } };", permissions=["microphone"]
    )
    settings(page, seconds=1)
    uploads = outcomes(api, "/continue")
    page.click("#record")
    has_text(page, "#record", re.compile(r"\(1 s\)"))
    page.click("#record")
    has_text(page, "#status", "Made.")
    assert "1.00 s, 75 tokens" in page.inner_text("#made-figures")
    assert outcomes(api, "/continue") == uploads + 1


def test_a_recording_can_be_gone_on_with_again(pages: Pages, api: httpx.Client, tmp_path: Path) -> None:
    """What the session heard is the clip: a further take uploads it, and its download begins with it."""
    page = pages.open(permissions=["microphone"])
    settings(page, seconds=0.5, seed=3)
    page.click("#record")
    has_text(page, "#record", re.compile(r"\(2 s\)"))
    page.click("#record")
    has_text(page, "#status", "Made.")
    until(lambda: metric(api, "sessions") == 0, 5)
    figures = page.inner_text("#clip-figures")
    with page.expect_download() as waiting:
        page.click("#download")
    assert waiting.value.suggested_filename == "recording-continued.wav"
    waiting.value.save_as(tmp_path / "first.wav")
    make(page)
    has_count(page, ".take", 2)
    has_text(page, "#seed-used", "4")
    assert page.inner_text("#clip-figures") == figures, "the same prompt, of the same likelihood"
    with page.expect_download() as waiting:
        page.click("#download")
    waiting.value.save_as(tmp_path / "second.wav")
    tokens = int(re.search(r"(\d+) tokens", figures)[1])  # type: ignore[index]
    first, second = (soundfile.read(tmp_path / name, dtype="int16")[0] for name in ("first.wav", "second.wav"))
    assert len(first) == len(second) == 320 * (tokens + 38)
    ours, theirs = (samples[: 320 * tokens - 2400].astype(int) for samples in (first, second))
    assert np.abs(ours - theirs).max() <= 1, "the prompt, to the rounding of 16 bits"


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
    assert painted(page, 0, share, *LIKELIHOODS) > 0.9, "the prompt's likelihoods are drawn in either case"


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
        told = f"token {tokens[frame]}, log-likelihood {nats(logprobs[frame])}"
        has_text(page, "#readout", re.compile(re.escape(told) + "$"))


def test_stop_ends_the_server_s_work(pages: Pages, api: httpx.Client) -> None:
    page = pages.open()
    choose(page, SPEECH)
    settings(page, seconds=120, include_prompt=False)
    before = metric(api, 'client_disconnects_total{stage="step"}')
    page.click("#go")
    has_text(page, "#status", "Playing while it is made…")
    assert page.evaluate("played.length") > 0
    assert metric(api, "slots_used") == 1, "it is heard before it is made"
    has_text(page, "#go", "Stop")
    begun, end = SPEECH_FRAMES / (SPEECH_FRAMES + 120 * 75), (SPEECH_FRAMES + 38) / (SPEECH_FRAMES + 120 * 75)
    for row in (WAVEFORM, SPECTROGRAM, LIKELIHOODS):  # half a second of it, which is drawn while it is made
        until(lambda row=row: painted(page, begun, end, *row) > 0, 20)  # type: ignore[misc]
    assert metric(api, "slots_used") == 1
    page.click("#go")
    until(lambda: metric(api, "slots_used") == 0, 5)
    has_text(page, "#status", "Stopped.")
    has_text(page, "#go", "Continue")
    assert metric(api, 'client_disconnects_total{stage="step"}') == before + 1
    enabled(page, "#download")  # what was made until then
    frames = int(re.search(r"(\d+) tokens", page.inner_text("#made-figures"))[1])  # type: ignore[index]
    assert frames > 0
    assert "nats per token" in page.inner_text("#made-figures")
    assert page.inner_text("#seed-used").isdigit()
    settings(page, seconds=0.5)
    make(page)  # and the only slot is free


def test_bad_file(pages: Pages) -> None:
    page = pages.open()
    choose(page, {"name": "notes.wav", "mimeType": "audio/wav", "buffer": b"no audio at all, in any format"})
    page.click("#go")
    has_text(page, "#error", re.compile("^Not a known audio file: send WAV"))
    has_text(page, "#go", "Continue")
    assert page.is_hidden("#download")
    pages.forgive_refusals()
    choose(page, SPEECH)
    assert page.is_hidden("#error")
    settings(page, seconds=0.5)
    make(page)


def test_a_part_of_a_long_file(pages: Pages, tmp_path: Path) -> None:
    """The limit is known before anything is sent, and a part that fits is chosen."""
    samples, rate = soundfile.read(SPEECH)
    soundfile.write(tmp_path / "long.wav", np.tile(samples, 4), rate)
    page = pages.open()
    choose(page, tmp_path / "long.wav")
    has_text(page, "#clip-notes p", re.compile(r"^The clip has 25\.4 s; a prompt may have 20 s\."))
    assert page.input_value("[name=from]") == "5.37"
    assert page.input_value("[name=to]") == ""
    page.get_by_role("button", name="Use the first 20 s").click()
    assert (page.input_value("[name=from]"), page.input_value("[name=to]")) == ("", "20")
    settings(page, **{"from": 0, "to": 24})
    page.click("#go")
    has_text(page, "#error", "A prompt may have 20 s at most.")
    settings(page, seconds=1, **{"from": 2, "to": 5})
    assert page.is_hidden("#error"), "it is out of date"
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
    """It is not even sent."""
    with (tmp_path / "large.wav").open("wb") as file:
        file.truncate(200 * 2**20)
    page = pages.open()
    choose(page, tmp_path / "large.wav")
    page.click("#go")
    has_text(page, "#error", "The file has 200 MiB; the server takes 168 MiB.")


DELTA = 'event: audio.delta\ndata: {"index": 0, "audio": "%s", "tokens": [1, 2], "logprobs": [-1.0, -2.0]}\n\n'
BROKEN = {
    "error-event": (
        200, 'event: audio.error\ndata: {"error": {"message": "the server is shutting down", "code": "draining"}}\n\n',
        "The server is shutting down.",
    ),
    "cut": (200, 'event: audio.de', "The connection to the server was cut."),
    "nothing": (200, "", "The connection to the server was cut."),
    "proxy": (502, "<h1>Bad gateway</h1>", "The server answered with status 502."),
}  # fmt: skip


@pytest.mark.parametrize(("status", "end", "told"), BROKEN.values(), ids=BROKEN)
def test_what_breaks_off(pages: Pages, status: int, end: str, told: str) -> None:
    """What came before is kept; the words are the server's where it has any."""
    page = pages.open()
    choose(page, SPEECH)
    settings(page, include_prompt=False)
    begun = DELTA % base64.b64encode(np.full(640, 8_000, "<i2").tobytes()).decode() if status == 200 and end else ""
    headers = {"content-type": "text/event-stream", "x-whispergpt-prompt-tokens": str(SPEECH_FRAMES)}
    page.route("**/continue", lambda route: route.fulfill(status=status, headers=headers, body=begun + end))
    page.click("#go")
    has_text(page, "#error", told)
    has_text(page, "#go", "Continue")
    assert sum(each["samples"] for each in page.evaluate("played")) == len(begun and bytes(640))
    assert page.is_visible("#download") == bool(begun)
    assert page.get_by_role("slider", name="Prompt start").is_visible()
    has_count(page, ".take", int(bool(begun)))
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


def test_a_key_is_asked_for(browser: Any, saved_bundle: Path, tmp_path: Path) -> None:
    with server(tmp_path / "log", "--bundle", str(saved_bundle), "--api-keys", "open sesame") as api:
        pages = Pages(browser, api)
        page = pages.open()
        choose(page, SPEECH)
        settings(page, seconds=0.5)
        assert page.is_hidden("#key")
        page.click("#go")
        has_text(page, "#error", "This server wants an API key.")
        assert page.evaluate("document.activeElement.id") == "key"
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        has_text(page, "#error", "The server does not take this API key.")
        page.fill("#key", "open sesame")
        page.keyboard.press("Enter")
        has_text(page, "#status", "Made.")
        assert "open sesame" not in page.evaluate("JSON.stringify(localStorage)"), "not unless it is asked for"
        page.click("#copy-curl")
        assert "open sesame" not in page.input_value("#curl")
        page.reload()
        choose(page, SPEECH)
        page.click("#go")
        has_text(page, "#error", "This server wants an API key.")
        page.fill("#key", "open sesame")
        page.check("#remember-key")
        page.get_by_role("button", name="Use it").click()
        has_text(page, "#status", "Made.")
        page.reload()
        choose(page, SPEECH)
        make(page)
        assert page.is_hidden("#key")
        assert page.is_hidden("#error")
        page.context.grant_permissions(["microphone"])
        page.click("#record")
        has_text(page, "#record", re.compile(r"\(1 s\)"))
        page.click("#record")
        has_text(page, "#status", "Made.")
        until(lambda: outcomes(api, "/v1/audio/session") == 1, 5)
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
    has_text(page, "#play", re.compile("^Play( again)?$"))  # a slow machine may have played all of it
    page.keyboard.press("Home")
    assert float(slider.get_attribute("aria-valuenow")) == 0
    page.keyboard.press("ArrowRight")
    assert float(slider.get_attribute("aria-valuenow")) == 0.5
    page.keyboard.press("End")
    assert slider.get_attribute("aria-valuetext") == "8.5 of 8.5 seconds"
    page.keyboard.press("ArrowLeft")
    spoken = r"8\.0 of 8\.5 seconds, token \d+, log-likelihood \u2212?\d+\.\d\d nats"
    assert re.fullmatch(spoken, slider.get_attribute("aria-valuetext"))
    page.keyboard.press("End")
    has_text(page, "#play", "Play again")
    before = page.evaluate("played.length")
    page.keyboard.press("Enter")
    has_text(page, "#play", "Pause")
    assert page.evaluate("played.slice(-1)[0].samples") > 0
    assert page.evaluate("played.length") > before


def range_of(page: Any) -> tuple[float, float]:
    """Where the handles of the prompt stand, seconds."""
    names = ("Prompt start", "Prompt end")
    start, end = (float(page.get_by_role("slider", name=name).get_attribute("aria-valuenow")) for name in names)
    return start, end


def drag(page: Any, selector: str, start: float, end: float) -> None:
    """On the waveform, from one share of the width to another."""
    box = page.locator(selector).bounding_box()
    y = box["y"] + 0.1 * box["height"]
    page.mouse.move(box["x"] + start * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + (start + end) / 2 * box["width"], y)
    page.mouse.move(box["x"] + end * box["width"], y)
    page.mouse.up()


def test_the_prompt_is_chosen_in_the_picture(pages: Pages) -> None:
    page = pages.open()
    choose(page, SPEECH)
    assert range_of(page) == (0, 6.34)
    drag(page, "#timeline", 0.25, 0.75)
    start, end = range_of(page)
    assert (start, end) == pytest.approx((6.342 / 4, 6.342 * 3 / 4), abs=0.05)
    box = page.locator("#timeline").bounding_box()
    drag(page, "#timeline", end / 6.342, 1.2)  # the handle, beyond the picture's edge
    assert range_of(page) == (start, 6.34)
    handle = page.get_by_role("slider", name="Prompt end")
    handle.focus()
    page.keyboard.press("PageDown")
    page.keyboard.press("ArrowLeft")
    page.get_by_role("slider", name="Prompt start").focus()
    page.keyboard.press("Home")
    page.keyboard.press("Shift+ArrowRight")
    assert range_of(page) == pytest.approx((1, 5.24), abs=0.01)
    assert page.input_value("[name=from]") == "1"
    has_text(page, "#status", re.compile(r"^Prompt: 1\.00 s to 5\.2\d s, 4\.2\d s\.$"))
    assert box == page.locator("#timeline").bounding_box(), "nothing moves beneath the pointer"
    settings(page, seconds=0.5, to=5)
    assert range_of(page) == (1, 5)
    make(page)
    assert "4.00 s, 300 tokens" in page.inner_text("#clip-figures")


def test_takes(pages: Pages, api: httpx.Client, tmp_path: Path) -> None:
    page = pages.open()
    choose(page, SPEECH)
    settings(page, seconds=0.5, seed=5, **{"from": 1, "to": 5})
    make(page)
    for count in (2, 3, 4):
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("n")
        has_count(page, ".take", count)
        has_text(page, "#status", "Made.")
    page.keyboard.press("n")
    has_text(page, "#error", re.compile("^4 takes are kept"))
    told = page.locator(".take").all_inner_texts()
    assert [int(re.search(r"seed (\d+)", text)[1]) for text in told] == [5, 6, 7, 8]  # type: ignore[index]
    form = {"prompt_start": 1, "prompt_end": 5, "seconds": 0.5, "include_prompt": True}
    file = {"file": SPEECH.read_bytes()}
    answers = [api.post("/continue", files=file, data=form | {"seed": seed}).json() for seed in (5, 6, 7, 8)]
    nlls = [answer["choices"][0]["nll"] for answer in answers]
    assert [f"{nats(-nll)} per token" in text for nll, text in zip(nlls, told, strict=True)] == [True] * 4
    assert ["most likely" in text for text in told] == [nll == min(nlls) for nll in nlls]
    settings(page, **{"from": 2})
    assert page.locator(".take").count() == 4, "typing throws nothing away"
    page.get_by_role("button", name="Take 2", exact=True).click()
    assert page.input_value("[name=from]") == "1"
    has_text(page, "#seed-used", "6")
    before = page.evaluate("played.length")
    page.get_by_role("button", name="Play take 2").click()
    assert page.evaluate("played.length") > before
    page.click("#copy-curl")
    command = shlex.split(page.input_value("#curl"))
    shutil.copy(SPEECH, tmp_path)
    subprocess.run(command, cwd=tmp_path, check=True)
    with page.expect_download() as waiting:
        page.click("#download")
    waiting.value.save_as(tmp_path / "take.wav")
    assert (tmp_path / "speech-continued.wav").read_bytes() == (tmp_path / "take.wav").read_bytes()
    page.select_option("#format", "flac")
    with page.expect_download() as waiting:
        page.click("#download")
    assert waiting.value.suggested_filename == "speech-continued.flac"
    waiting.value.save_as(tmp_path / "take.flac")
    whole, flac = (soundfile.read(tmp_path / name, dtype="int16")[0] for name in ("take.wav", "take.flac"))
    assert np.array_equal(whole, flac)
    page.get_by_role("button", name="Remove take 2").click()
    assert page.locator(".take").count() == 3
    page.get_by_role("button", name="Take 4", exact=True).click()
    page.click("#go-on")  # the take is the clip now
    has_text(page, "#status", f"speech-continued.wav: {4 + 38 / 75:.2f} s.")
    assert page.locator(".take").count() == 0
    make(page)
    assert "4.51 s, 338 tokens" in page.inner_text("#clip-figures")


def test_zoom(pages: Pages) -> None:
    page = pages.open()
    choose(page, SPEECH)
    assert page.is_hidden("#scroll")
    for _ in range(3):
        page.click("#zoom-in")
    assert page.is_visible("#scroll")
    assert page.get_by_role("slider", name="Prompt start").is_hidden()
    page.focus("#scroll")
    page.keyboard.press("Home")
    assert page.get_by_role("slider", name="Prompt start").is_visible()
    assert page.get_attribute("#scroll", "aria-valuetext").startswith("0.0 to 1.5")
    assert painted(page, 0, 1, *WAVEFORM) > 0.5
    page.click("#zoom-whole")
    assert page.is_hidden("#scroll")


def test_settings_are_kept(pages: Pages) -> None:
    page = pages.open()
    settings(page, seconds=2.5, temperature=0.8, seed=7, include_prompt=False)
    page.reload()
    values = [page.input_value(f"[name={name}]") for name in ("seconds", "temperature", "seed")]
    assert values == ["2.5", "0.8", "7"]
    assert not page.is_checked("[name=include_prompt]")


def test_what_is_wrong_with_a_clip(pages: Pages, tmp_path: Path) -> None:
    samples, rate = soundfile.read(SPEECH)
    soundfile.write(tmp_path / "silent.wav", np.zeros(24_000), rate)
    soundfile.write(tmp_path / "quiet.wav", 0.005 * samples, rate, subtype="FLOAT")
    soundfile.write(tmp_path / "inverted.wav", np.stack([samples, -samples], axis=1), rate)
    soundfile.write(tmp_path / "noise.wav", 0.1 * np.random.default_rng(4).standard_normal(4 * rate), rate)
    page = pages.open()
    choose(page, tmp_path / "noise.wav")
    settings(page, seconds=0.5)
    make(page)
    has_text(page, "#warnings li", re.compile("^The clip sounds like a steady noise or tone, and neither like speech"))
    for name, told in {"silent": "silent", "quiet": "very quiet", "inverted": "phase-inverted"}.items():
        choose(page, tmp_path / f"{name}.wav")
        has_text(page, "#clip-notes p", re.compile(told))
    settings(page, seconds=0.5)
    make(page)
    has_text(page, "#warnings li", re.compile("."))  # the server's own
    page.get_by_role("button", name="Use the left channel").click()
    has_text(page, "#status", "inverted-left.wav: 6.34 s.")
    assert page.is_hidden("#clip-notes")
    assert page.is_hidden("#warnings")
    assert painted(page, 0, 1, *WAVEFORM) > 0.9


def test_the_last_clip_is_not_shown_while_one_is_recorded(pages: Pages) -> None:
    page = pages.open(permissions=["microphone"])
    choose(page, SPEECH)
    assert page.is_visible("#picture")
    page.click("#record")
    has_text(page, "#record", re.compile(r"\(1 s\)"))
    assert page.is_hidden("#picture")
    page.click("#record")
    has_text(page, "#status", "Made.")
    assert page.is_visible("#picture")


def test_what_is_sent_is_told(pages: Pages, tmp_path: Path) -> None:
    samples, rate = soundfile.read(SPEECH)
    soundfile.write(tmp_path / "long.wav", np.tile(samples, 8), rate)
    page = pages.open()
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    network.send("Network.emulateNetworkConditions", {"offline": False, "latency": 0, "downloadThroughput": -1,
                                                      "uploadThroughput": 1_000_000})  # fmt: skip
    page.click("#tab-score")
    page.set_input_files("#score-files", tmp_path / "long.wav")
    has_text(page, "#scores tbody span", re.compile(r"^sending: \d+ %$"))
    has_text(page, "#status", "1 clip scored.")


def figures_of(page: Any) -> list[list[str]]:
    """The rows as they stand: name, what is told of it, figures."""
    return [row.locator("th button, th span, td").all_inner_texts() for row in page.locator("#scores tbody tr").all()]


def test_scores(pages: Pages, api: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_bytes(b"no audio at all, in any format")
    page = pages.open()
    page.click("#tab-score")
    page.set_input_files("#score-files", [SPEECH, MUSIC, tmp_path / "notes.wav"])
    has_text(page, "#status", "2 clips scored, 1 could not be.")
    pages.forgive_refusals()
    files = [("file", (path.name, path.read_bytes())) for path in (SPEECH, MUSIC)]
    results = api.post("/score", files=files).json()["results"]
    rows = {row[0]: row for row in figures_of(page)}
    for each in results:
        wanted = [f"{each['seconds']:.2f}", nats(-each["nll"]).removesuffix(" nats")]
        assert rows[each["filename"]][2:4] == wanted
    assert rows["notes.wav"][1].startswith("Not a known audio file")
    page.get_by_role("button", name="Log-likelihood, nats per token").click()
    likeliest = sorted(results, key=lambda each: each["nll"])
    assert [row[0] for row in figures_of(page)] == [each["filename"] for each in likeliest] + ["notes.wav"]
    page.get_by_role("button", name="Log-likelihood, nats per token").click()
    assert [row[0] for row in figures_of(page)][:2] == [each["filename"] for each in likeliest[::-1]]
    page.get_by_role("button", name="music.flac").click()
    has_text(page, "#score-shown", "music.flac")
    page.wait_for_timeout(100)
    drag(page, "#score-timeline", 0.4, 0.6)
    has_text(page, "#window-told", re.compile(r"^3\.\d\d s to 4\.\d\d s$"))
    page.select_option("#normalise-by", "alone")
    page.click("#score-window")
    has_text(page, "#status", "2 clips scored, 1 could not be.")
    pages.forgive_refusals()
    with page.expect_download() as waiting:
        page.click("#export-csv")
    waiting.value.save_as(tmp_path / "scores.csv")
    table = {row["filename"]: row for row in csv.DictReader(io.StringIO((tmp_path / "scores.csv").read_text()))}
    assert table["notes.wav"]["error"].startswith("Not a known audio file")
    start, end = (float(value) for value in re.findall(r"[\d.]+(?= s)", page.inner_text("#window-told")))
    form = {"window_start": start, "window_seconds": end - start - 0.005, "normalise_by": "alone"}
    results = api.post("/score", files=files, data=form).json()["results"]
    for each in results:
        line = table[each["filename"]]
        for name in ("nll", "perplexity", "accuracy"):
            assert float(line[name]) == pytest.approx(each[name], rel=1e-6)
        assert float(line["window_start"]) == pytest.approx(start, abs=1 / 75)
        assert float(line["window_normalised_nll"]) == pytest.approx(each["window"]["normalised_nll"], abs=0.1)


def test_files_that_are_dropped(pages: Pages) -> None:
    """One is to be continued, several are to be scored."""
    page = pages.open()
    drop = """async names => {
      const dataTransfer = new DataTransfer();
      for (const name of names) {
        dataTransfer.items.add(new File([await (await fetch(`examples/${name}`)).blob()], name));
      }
      document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(drop, ["speech.flac"])
    has_text(page, "#status", "speech.flac: 6.34 s.")
    page.evaluate(drop, ["speech.flac", "music.flac"])
    has_text(page, "#status", "2 clips scored.")
    assert page.get_by_role("tab", name="Score").get_attribute("aria-selected") == "true"
    page.get_by_role("tab", name="Score").press("ArrowLeft")
    assert page.is_visible("#picture"), "what was there is still there"
    page.get_by_role("tab", name="Score").click()
    page.click("#clear-scores")
    assert page.is_hidden("#scores")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_it_fits(pages: Pages, width: int, scheme: str) -> None:
    """Pictures of both tabs, and of a recording, are left, for a person to look at."""
    screen: dict[str, Any] = {
        "viewport": {"width": width, "height": 800},
        "color_scheme": scheme,
        "has_touch": width < 600,
    }
    page = pages.open(permissions=["microphone"], **screen)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)

    def fits(name: str) -> None:
        page.wait_for_timeout(300)  # for the last spectrogram
        page.screenshot(path=SCREENSHOTS / f"{name}-{width}-{scheme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        small = page.evaluate("""[...document.querySelectorAll('button, select, .button, [role=slider], summary')]
            .filter(element => element.checkVisibility() && !element.closest('p, dd'))  // but for links in a sentence
            .map(element => [element.textContent.trim() || element.id, element.getBoundingClientRect()])
            .filter(([, box]) => box.height < 24 || box.width < 24).map(([name]) => name)""")
        assert small == [], "targets of a finger (WCAG 2.5.8)"

    fits("empty")
    settings(page, seconds=0.5)
    page.evaluate("document.getElementById('details').open = false")
    page.click("#record")
    has_text(page, "#heard-told", re.compile("^Log-likelihood so far: "))
    fits("recording")
    page.click("#record")
    has_text(page, "#status", "Made.")
    choose(page, SPEECH)
    settings(page, seconds=1.5)
    page.evaluate("document.getElementById('details').open = false")
    make(page)
    page.click("#go")
    has_count(page, ".take", 2)
    has_text(page, "#status", "Made.")
    fits("continue")
    page.click("#tab-score")
    page.set_input_files("#score-files", [SPEECH, MUSIC])
    has_text(page, "#status", "2 clips scored.")
    fits("score")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) > 3 * 128) == (scheme == "light")
