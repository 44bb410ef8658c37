"""`whisper-gpt bench`: how a server does under load."""

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app import __version__
from app.cli.interrupt import handled, stop_at_once
from app.cli.options import console, errors, existing_files
from app.cli.output import check_output, whole_file
from app.client.kinds import Arrivals, Form, Route
from app.errors import UserError
from model.constants import MAX_SEED, SAMPLE_RATE_HZ

if TYPE_CHECKING:  # numpy and an HTTP client, which `--help` does without
    from app.audio.samples import Samples
    from app.client.load_generator import Load, Report

LABELS = {
    "first_audio_seconds": ("first audio, s", 3),
    "total_seconds": ("whole answer, s", 3),
    "queue_seconds": ("in the queue, s", 3),
    "real_time_factor": ("times real time", 2),
    "buffer_needed_seconds": ("buffer needed, s", 3),
}


def made_up_clip(seconds: float, seed: int = 0) -> "Samples":
    """Something between a hum and speech: voiced syllables with a wandering pitch, and hiss. (N,) at 24 kHz."""
    import numpy as np

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
        from app.audio.encode import encode

        return [("clip.wav", encode(made_up_clip(seconds), "wav"))]
    read = [(path.name, path.read_bytes()) for path in existing_files(prompts)]
    for name, content in read:
        if not content:
            raise UserError(f"{name} is empty")
    return read


def served_model(url: str, key: str | None) -> dict[str, Any]:
    """What the server says of its model. Raises UserError when it does not answer."""
    import httpx

    from app.client.calls import CONNECT_SECONDS

    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(url + "/v1/models", headers=headers, timeout=CONNECT_SECONDS)
        answer.raise_for_status()
        model: dict[str, Any] = answer.json()["data"][0]
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(f"no answer from {url}: {error}") from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{url} does not answer as a Whisper-GPT server") from error
    return {name: model.get(name) for name in ("id", "preset", "hashes")}


def with_progress(load: "Load") -> "Report":
    """Puts the load on the server and shows how it goes."""
    import asyncio

    from app.cli.progress import progress_bar
    from app.client.load_generator import put_load

    whole = load.requests or math.ceil((load.duration or 0.0) * (load.rate or 1.0))
    with progress_bar("requests", whole if load.requests or load.rate else None, "a second") as bar:

        def on_progress(report: "Report") -> None:
            bad = sum(one.error is not None for one in report.outcomes)
            bar.update(len(report.outcomes), f"{report.in_flight} under way, {bad} failed")

        return asyncio.run(put_load(load, on_progress))


def show(found: dict[str, Any], load: "Load", buffer_seconds: float) -> None:
    """The figures as a person reads them."""
    from rich.table import Column, Table

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
    url: Annotated[str, typer.Argument(help="the server")] = "http://127.0.0.1:8000",
    rate: Annotated[float | None, typer.Option(help="requests a second, whatever the server does (open loop)")] = None,
    arrivals: Annotated[Arrivals, typer.Option(help="with --rate: random gaps, or equal ones")] = "poisson",
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="so many clients instead, each of which waits for its answer; default: 1")
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="stop after so many; default: 20")] = None,
    duration: Annotated[float | None, typer.Option(help="stop sending after so many seconds")] = None,
    route: Annotated[Route, typer.Option(help="what to ask for")] = "continue",
    stream: Annotated[
        bool, typer.Option("--stream", help="play the audio while it is made: first audio, gaps")
    ] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="audio to make for each request")] = 5.0,
    prompt: Annotated[
        list[Path] | None, typer.Option(help="audio file to send; several take turns; default: a made-up one")
    ] = None,
    prompt_seconds: Annotated[float, typer.Option(min=0.1, help="length of the made-up clip")] = 3.0,
    response_format: Annotated[
        Form, typer.Option(help="json has the server's own timings, pcm is bare audio")
    ] = "json",
    buffer: Annotated[float, typer.Option(min=0.0, help="seconds of audio that a player holds before it plays")] = 0.1,
    warmup: Annotated[int, typer.Option(min=0, help="requests before, which do not count")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="of the arrivals and of the requests")] = 0,
    timeout: Annotated[float, typer.Option(min=0.1, help="seconds that the client waits for a sign of life")] = 600.0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="write figures and every request, as JSON")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures as JSON instead of a table")] = False,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="WHISPERGPT_API_KEY", show_envvar=False, help="key for the server [WHISPERGPT_API_KEY]"),
    ] = None,
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
    if out is not None:
        check_output(out)
    with handled(stop_at_once):
        import asyncio
        from datetime import UTC, datetime

        from app.client.calls import server_url
        from app.client.load_generator import Load, put_load, summary

    url = server_url(url)
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
        with whole_file(out) as part:
            part.write_text(json.dumps(body | {"outcomes": rows}, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(body))
    else:
        show(found, load, buffer)
    if not found["answered"]:
        raise typer.Exit(1)


def warm(load: "Load", requests: int) -> "Load":
    """A few short requests of the same kind, one after the other."""
    from app.client.load_generator import Load

    return Load(
        clips=load.clips, url=load.url, route=load.route, requests=requests, seconds=min(load.seconds, 1.0),
        stream=load.stream, response_format=load.response_format, key=load.key, timeout_seconds=load.timeout_seconds,
    )  # fmt: skip
