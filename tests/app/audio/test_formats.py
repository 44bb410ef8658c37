"""The registry of formats: each has all that it needs, and what the API and the command line say follows from it."""

import io
from typing import get_args

import numpy as np
import pytest

from app.audio.encode import ENCODERS, encode
from app.audio.formats import MEDIA_TYPES, STREAM_SUFFIXES, STREAMED, SUFFIXES, Format, StreamFormat, listed
from app.continuations.schemas import ContinueForm
from app.errors import InvalidParameter
from app.server.schemas import checked
from tests.support.decoding import decoded_samples

FORMATS: tuple[Format, ...] = get_args(Format)


def test_each_format_has_a_media_type_and_a_suffix() -> None:
    assert set(MEDIA_TYPES) == set(FORMATS) == set(SUFFIXES.values())
    assert set(ENCODERS) == set(STREAMED) == set(STREAM_SUFFIXES.values()) <= set(FORMATS)


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
