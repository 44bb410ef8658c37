"""The registry of formats: each has all that it needs, and what the API and the command line say follows from it."""

import io
from typing import cast, get_args

import numpy as np
import pytest

from app.audio import formats
from app.audio.encode import encode, encoder
from app.audio.formats import (
    MEDIA_TYPES,
    STREAM_SUFFIXES,
    STREAMED,
    SUFFIXES,
    Codec,
    Format,
    FormatEntry,
    StreamFormat,
    listed,
)
from app.continuations.schemas import ContinueForm
from app.errors import InvalidParameter
from app.server.schemas import checked
from tests.support.decoding import decoded_samples

FORMATS: tuple[Format, ...] = get_args(Format)


def test_each_format_has_a_media_type_and_a_suffix() -> None:
    assert set(MEDIA_TYPES) == set(FORMATS) == set(SUFFIXES.values())
    assert set(STREAMED) == set(STREAM_SUFFIXES.values()) <= set(FORMATS)
    assert set(STREAMED) == {name for name, entry in formats.FORMATS.items() if entry.libsndfile is None}


@pytest.mark.parametrize("form", FORMATS)
def test_each_format_is_a_value_of_the_api_and_makes_sound(form: Format) -> None:
    assert checked(ContinueForm, {"response_format": form}).response_format == form
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000)).astype(np.float32)
    content = encode(tone, form)
    if form == "pcm":  # bare samples, which nothing tells the rate of
        assert len(content) == 2 * len(tone)
        return
    heard = decoded_samples(io.BytesIO(content), 10)
    assert 24_000 <= len(heard) < 26_500
    assert np.abs(np.fft.rfft(heard[:24_000])).argmax() == 440


@pytest.mark.parametrize(
    "entry",
    [FormatEntry("audio/aiff", libsndfile="AIFF"),
     FormatEntry("audio/mpeg", Codec("mp2", "mp2", "s16", 1_152, 64_000, options={}, container_options={}))],
    ids=["libsndfile", "FFmpeg"],
)  # fmt: skip
def test_an_entry_is_all_that_a_format_takes(monkeypatch: pytest.MonkeyPatch, entry: FormatEntry) -> None:
    monkeypatch.setitem(formats.FORMATS, "new", entry)  # type: ignore[misc]
    form = cast(StreamFormat, "new")
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000)).astype(np.float32)
    content = encode(tone, form)
    heard = decoded_samples(io.BytesIO(content), 10)
    assert np.abs(np.fft.rfft(heard[:24_000])).argmax() == 440
    if entry.codec is not None:
        made = encoder(form)
        try:
            streamed = made.head + b"".join(made.feed(part) for part in np.split(tone, 10)) + made.finish()
        finally:
            made.close()
        assert streamed == content


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_whole_only_is_refused_as_a_stream(form: StreamFormat) -> None:
    fields = {"response_format": form, "stream": "true"}
    if form in STREAMED:
        assert checked(ContinueForm, fields).stream
        return
    with pytest.raises(InvalidParameter, match=r"^stream: flac is whole only; stream json, wav, pcm, opus or mp3$"):
        checked(ContinueForm, fields)


def test_names_in_a_sentence() -> None:
    assert listed(("wav", "pcm", "mp3"), "or") == "wav, pcm or mp3"
    assert listed(("wav", "pcm"), "and") == "wav and pcm"
