"""`whisper-gpt continue`: here, or against a server with `--url`."""

import base64
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from app.audio.formats import STREAM_SUFFIXES, SUFFIXES, listed
from app.cli.interrupt import handled, stop_at_once
from app.cli.options import console, errors, existing_files, form_options, show_warnings
from app.cli.output import check_output, whole_file
from app.cli.plot import check_plot, plot_continuation
from app.cli.remote import ApiKey, BundleFolder, Device, Threads, Url, check_place
from app.continuations.schemas import ContinueForm
from app.errors import UserError

if TYPE_CHECKING:
    from app.cli.progress import Bar

STDOUT = Path("-")
OF_SERVERS = (
    "model",
    "prompt",
    "continue_from",
    "continue_choice",
    "store",
)  # what one keeps is for those who have its ids
# a file is one continuation, and its name a format
NOT_OPTIONS = ("n", "response_format", "stream", "timeout_seconds", *OF_SERVERS)


def _write(body: dict[str, Any], out: Path) -> None:
    """The answer as the file's name asks: the JSON as it is, or the sound of its only choice."""
    with handled(stop_at_once):
        import numpy as np
        import soundfile

        from app.audio.encode import encode

    with whole_file(out) as part:
        if out.suffix.lower() == ".json":
            part.write_text(json.dumps(body) + "\n")
            return
        wav = base64.b64decode(body["choices"][0]["audio"]["data"])
        samples, _ = soundfile.read(io.BytesIO(wav), dtype="int16")
        part.write_bytes(encode(samples.astype(np.float32) / 32767, SUFFIXES[out.suffix.lower()]))


def _told(content: Iterator[bytes], bar: "Bar") -> Iterator[bytes]:
    """The parts of an answer; the bar hears of each."""
    for part in content:
        bar.advance(len(part) / 1000)
        yield part


def _check_name(out: Path, stream: bool) -> None:
    """Raises UserError when no format goes by the file's name, or the file cannot be written."""
    from app.cli.stream import stream_format

    if out == STDOUT:
        return
    check_output(out)
    if stream:
        stream_format(out)
    elif out.suffix.lower() not in (*SUFFIXES, ".json"):
        raise UserError(f"{out}: the name must end in {', '.join(SUFFIXES)} or .json")


@form_options(ContinueForm, leave_out=NOT_OPTIONS)
def continue_command(
    clip: Annotated[Path, typer.Argument(help="the prompt: any audio file")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help=f"where to write: {listed((*SUFFIXES, '.json'), 'or')}; - is --stream")
    ],
    form: ContinueForm,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream", help=f"write while it is made: {', '.join(STREAM_SUFFIXES)}, or - for PCM to a player"
        ),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="draw prompt and continuation, their spectrogram and likelihood to this .png; needs the "
            "extra plot; not with --stream"
        ),
    ] = None,
    codebooks: Annotated[
        int | None, typer.Option(help="codes of a made frame: 2, 4 or 8; default: the setting's; not with --url")
    ] = None,
    mel: Annotated[
        Literal["decoded", "masked"] | None,
        typer.Option(help="mel of made frames: of the decoded audio (the default), or none; not with --url"),
    ] = None,
    bundle: BundleFolder = None,
    device: Device = None,
    threads: Threads = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Continue a clip."""
    place = {"codebooks": codebooks, "mel": mel, "bundle": bundle, "device": device, "threads": threads}
    url = check_place(url, place)
    existing_files([clip])
    stream = stream or out == STDOUT
    _check_name(out, stream)
    if plot is not None:
        if stream:
            raise UserError("--plot is drawn of a whole continuation: leave out --stream")
        check_plot(plot)
    form = form.seeded()
    if url is None:
        with handled(stop_at_once):
            from app.cli.local import Continuing, load

        loaded, codebooks = load(bundle, device, threads, codebooks)

        def here() -> Continuing:
            return Continuing(loaded, form, clip, codebooks, mel or "decoded")

    from app.cli.progress import progress_bar

    if stream:
        from app.audio.encode import parts
        from app.cli.stream import stream_format, write_stream
        from app.client.calls import header_warnings
        from app.client.sync import Client

        wanted = stream_format(out)
        if url is None:
            continuing = here()
            show_warnings(clip, continuing.warnings)
            write_stream(parts(wanted, continuing.stream()), out)
        else:
            fields = form.model_dump(exclude={"stream", "response_format", *OF_SERVERS})
            with progress_bar(f"from {url}", None, "kB/s") as bar, Client(url, api_key) as client:

                def heads(told: Mapping[str, str]) -> None:
                    show_warnings(clip, header_warnings(told))

                content = client.stream_audio(clip, response_format=wanted, begun=heads, **fields)
                write_stream(_told(content, bar), out)
        errors.print(f"{out}: written while it was made, seed {form.seed}", markup=False, soft_wrap=True)
        return
    prompt_logprobs = None
    if url is None:
        continuing = here()
        body, prompt_logprobs = continuing.whole(), continuing.state.logprobs.tolist()
    else:
        from app.client.calls import continuing as call
        from app.client.sync import Client

        with progress_bar(f"waiting for {url}", None, ""), Client(url, api_key) as client:
            body = client.send(call(clip, form.model_dump(exclude=set(OF_SERVERS)))).json()
    show_warnings(clip, body.get("warnings"))
    _write(body, out)
    if plot is not None:
        plot_continuation(plot, clip, (form.prompt_start, form.prompt_end), body, prompt_logprobs)
    choice = body["choices"][0]
    seconds = len(choice["tokens"]) / body["frame_rate"]
    console.print(
        f"{out}: {seconds:.2f} s made, seed {body['seed']}, nll {choice['nll']:.3f} nats a token",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
