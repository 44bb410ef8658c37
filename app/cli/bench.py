"""`whisper-gpt bench`: how a server does under load."""

import asyncio
import json
import math
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from app import __version__
from app.audio.encode import encode
from app.audio.formats import Samples
from app.cli.options import console, errors, existing
from app.client.client import CONNECT_SECONDS
from app.client.load_generator import Arrivals, Form, Load, Report, Route, put_load, summary
from app.errors import UserError
from model.constants import SAMPLE_RATE_HZ

LABELS = {
    "first_audio_seconds": ("first audio, s", 3),
    "total_seconds": ("whole answer, s", 3),
    "queue_seconds": ("in the queue, s", 3),
    "real_time_factor": ("times real time", 2),
    "buffer_needed_seconds": ("buffer needed, s", 3),
}


def made_up_clip(seconds: float, seed: int = 0) -> Samples:
    """Something between a hum and speech: voiced syllables with a wandering pitch, and hiss. (N,) at 24 kHz."""
    numbers = np.random.default_rng(seed)
    times = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    pitch = 120 * 2 ** (0.3 * np.sin(2 * np.pi * 0.7 * times + numbers.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE_HZ
    formant = 900 + 500 * np.sin(2 * np.pi * 1.3 * times + numbers.uniform(0, 6))
    voiced = sum(np.exp(-(((k * pitch - formant) / 500) ** 2)) * np.sin(k * phase) for k in range(1, 25))
    syllables = np.clip(np.sin(2 * np.pi * 3 * times) + 0.5, 0, 1)
    hiss = 0.01 * numbers.standard_normal(len(times))
    clip: Samples = np.clip(0.2 * voiced * syllables + hiss, -1, 1).astype(np.float32)
    return clip


def clips(prompts: list[Path], seconds: float) -> list[tuple[str, bytes]]:
    """The files, or a made-up one. Raises UserError for one that does not exist or is empty."""
    if not prompts:
        return [("clip.wav", encode(made_up_clip(seconds), "wav"))]
    read = [(path.name, path.read_bytes()) for path in existing(prompts)]
    for name, content in read:
        if not content:
            raise UserError(f"{name} is empty")
    return read


def served_model(url: str, key: str | None) -> dict[str, Any]:
    """What the server says of its model. Raises UserError when it does not answer."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(url.rstrip("/") + "/v1/models", headers=headers, timeout=CONNECT_SECONDS)
        answer.raise_for_status()
        model: dict[str, Any] = answer.json()["data"][0]
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(f"no answer from {url}: {error}") from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{url} does not answer as a Whisper-GPT server") from error
    return {name: model.get(name) for name in ("id", "preset", "hashes")}


def with_progress(load: Load) -> Report:
    """Puts the load on the server and shows how it goes."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    whole = load.requests or math.ceil((load.duration or 0.0) * (load.rate or 1.0))
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task("requests", total=whole if load.requests or load.rate else None, state="")

        def told(report: Report) -> None:
            bad = sum(one.error is not None for one in report.outcomes)
            state = f"{report.in_flight} under way, {bad} failed"
            bar.update(task, completed=len(report.outcomes), state=state)

        return asyncio.run(put_load(load, told))


def show(found: dict[str, Any], load: Load, buffer_seconds: float) -> None:
    """The figures as a person reads them."""
    names = list(next(one for one in found["figures"].values() if one)) if found["answered"] else []
    table = Table("", *(Column(name, justify="right") for name in names))
    for key, (label, digits) in LABELS.items():
        figure = found["figures"][key]
        if figure is not None:
            table.add_row(label, *(f"{value:.{digits}f}" for value in figure.values()))
    if table.row_count:
        console.print(table)
    sent = f"{load.rate:g} a second ({load.arrivals})" if load.rate else f"{load.concurrency} at a time"
    made = "scored" if load.route == "score" else "made"
    console.print(
        f"{found['answered']} of {found['requests']} requests answered in {found['seconds']:.1f} s, sent {sent}: "
        f"{found['requests_a_second']:.2f} a second, {found['audio_seconds_a_second']:.2f} s of audio {made} a second"
    )
    if found["streams"]:
        held = f" with {buffer_seconds:g} s held back" if buffer_seconds else ""
        console.print(f"{found['underruns']} of {found['streams']} streams ran dry while playing{held}")
    if found["overloaded"]:
        console.print(f"{found['overloaded']} requests were turned away (429): the server was full")
    for code, count in found["errors"].items():
        if not code.startswith("429"):
            errors.print(f"{count} failed: {code}", style="red", markup=False)
    if found["late_to_leave_seconds"] > 0.1:
        late = found["late_to_leave_seconds"]
        errors.print(f"this client was up to {late:.2f} s late itself: the latencies hold that, too", style="yellow")


def bench_command(
    url: Annotated[str, typer.Argument(help="The server")] = "http://127.0.0.1:8000",
    rate: Annotated[float | None, typer.Option(help="Requests a second, whatever the server does (open loop)")] = None,
    arrivals: Annotated[Arrivals, typer.Option(help="With --rate: random gaps, or equal ones")] = "poisson",
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="So many clients instead, each of which waits for its answer; default: 1")
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Stop after so many; default: 20")] = None,
    duration: Annotated[float | None, typer.Option(help="Stop sending after so many seconds")] = None,
    route: Annotated[Route, typer.Option(help="What to ask for")] = "continue",
    stream: Annotated[
        bool, typer.Option("--stream", help="Play the audio while it is made: first audio, gaps")
    ] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="Audio to make for each request")] = 5.0,
    prompt: Annotated[
        list[Path] | None, typer.Option(help="Audio file to send; several take turns; default: a made-up one")
    ] = None,
    prompt_seconds: Annotated[float, typer.Option(min=0.1, help="Length of the made-up clip")] = 3.0,
    response_format: Annotated[
        Form, typer.Option(help="json has the server's own timings, pcm is bare audio")
    ] = "json",
    buffer: Annotated[float, typer.Option(min=0.0, help="Seconds of audio that a player holds before it plays")] = 0.1,
    warmup: Annotated[int, typer.Option(min=0, help="Requests before, which do not count")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the arrivals and of the requests")] = 0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that the client waits for a sign of life")] = 600.0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write figures and every request, as JSON")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON instead of a table")] = False,
    api_key: Annotated[str | None, typer.Option(envvar="WHISPERGPT_API_KEY", help="Key for the server")] = None,
) -> None:
    """Measure a server under load.

    With --rate, requests leave when their time has come, however slow the answers are, and latencies count from that
    time. Percentiles are over the requests that were answered.
    """
    if rate is not None and concurrency is not None:
        raise UserError("--rate and --concurrency exclude each other")
    for name, value in (("--rate", rate), ("--duration", duration)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise UserError(f"{name} must be above 0")
    if stream and route == "score":
        raise UserError("--stream is for --route continue")
    if requests is None and duration is None:
        requests = 20
    model = served_model(url, api_key)
    load = Load(
        clips=clips(prompt or [], prompt_seconds), url=url, route=route, rate=rate, arrivals=arrivals,
        concurrency=concurrency or 1, requests=requests, duration=duration, seconds=seconds, stream=stream,
        response_format=response_format, seed=seed, key=api_key, timeout_seconds=timeout,
    )  # fmt: skip
    if warmup:
        asyncio.run(put_load(warm(load, warmup)))
    begun = datetime.now(UTC)
    report = with_progress(load)
    found = summary(report, buffer)
    shown = {one.name: getattr(load, one.name) for one in fields(load) if one.name not in ("clips", "key")}
    conditions = shown | {
        "begun": begun.isoformat(timespec="seconds"), "version": __version__, "model": model,
        "clips": [name for name, _ in load.clips], "buffer_seconds": buffer,
    }  # fmt: skip
    body = {"conditions": conditions, **found}
    if out is not None:
        rows = [vars(one) for one in sorted(report.outcomes, key=lambda one: one.index)]
        out.write_text(json.dumps(body | {"outcomes": rows}, indent=1) + "\n")
    if as_json:
        print(json.dumps(body))  # noqa: T201
    else:
        show(found, load, buffer)
    if not found["answered"]:
        raise typer.Exit(1)


def warm(load: Load, requests: int) -> Load:
    """A few short requests of the same kind, one after the other."""
    return Load(
        clips=load.clips, url=load.url, route=load.route, requests=requests, seconds=min(load.seconds, 1.0),
        stream=load.stream, response_format=load.response_format, key=load.key, timeout_seconds=load.timeout_seconds,
    )  # fmt: skip
