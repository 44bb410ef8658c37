"""A session that is sent Opus: what is heard is what a file of the same packets holds, and damage costs what it hit."""

import asyncio
import io
import os
import signal
from collections.abc import Callable
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from app.audio.encode import to_pcm
from app.audio.live_decoder import DATA, END
from app.errors import DecoderLost
from app.metrics import Metrics
from app.sessions.decoding import IncomingOpus, LiveDecoder
from tests.app.sessions.test_session import SHORT, commit, respond
from tests.support.service import Service
from tests.support.websocket import Socket

PACKET_SECONDS = 0.02


def encoded(samples: Any, form: str = "webm") -> tuple[bytes, list[bytes]]:
    """A file of (N,) samples at 24 kHz, and its packets."""
    file = io.BytesIO()
    packets: list[bytes] = []
    with av.open(file, "w", format=form) as container:
        stream: Any = container.add_stream("libopus", rate=48_000, layout="mono")
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=48_000)
        frame = av.AudioFrame.from_ndarray(np.asarray(samples, np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate = 24_000
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            for packet in stream.encode(part):
                packets.append(bytes(packet))
                container.mux(packet)
    return file.getvalue(), packets


def opened(service: Service, form: str, **fields: Any) -> Socket:
    socket = Socket(service)
    socket.send("session.update", session={"input_audio_format": form, **fields})
    assert socket.take("session.updated")["session"]["input_audio_format"] == form
    return socket


@pytest.mark.parametrize("form", ["webm", "ogg"])
def test_the_same_as_with_a_file(service: Service, speech: Any, form: str) -> None:
    """However the stream is cut, to the bit; and a second one may follow in the same session."""
    data, _ = encoded(speech, form)
    file = service.post("/continue", data, data={"seconds": "0.4", "seed": "7"}).json()
    socket = opened(service, form)
    made = []
    for size in (101, 4_000, len(data)):
        for start in range(0, len(data), size):
            socket.send_bytes(data[start : start + size])
        scored, prompt = commit(socket)
        audio, tokens, _ = respond(socket, response=SHORT)
        assert tokens == file["choices"][0]["tokens"]
        assert prompt["tokens"] == file["prompt"]["tokens"]
        assert prompt["nll"] == pytest.approx(file["prompt"]["nll"], abs=1e-4)
        made.append(([event["logprobs"] for event in scored], audio))
    assert made[0] == made[1] == made[2]
    socket.leave()


def test_likelihoods_come_while_it_is_sent(service: Service, speech: Any) -> None:
    data, _ = encoded(speech)
    socket = opened(service, "webm")
    for start in range(0, len(data) // 2, 500):
        socket.send_bytes(data[start : start + 500])
    assert socket.take("input_audio.scored")["first"] == 0
    socket.leave()


def test_bare_packets(service: Service, speech: Any) -> None:
    data, packets = encoded(speech)
    socket = opened(service, "opus")
    for packet in packets:
        socket.send_bytes(packet)
    _, prompt = commit(socket)
    assert prompt["seconds"] == pytest.approx(len(packets) * PACKET_SECONDS, abs=0.02)
    file = service.post("/score", data).json()["results"][0]
    assert prompt["nll"] == pytest.approx(file["nll"], abs=0.2), "the same sound, some ms later in its frames"
    assert len(respond(socket, response=SHORT)[1]) == 30
    socket.leave()


def test_a_damaged_packet_costs_itself(service: Service, speech: Any) -> None:
    _, packets = encoded(speech)
    socket = opened(service, "opus")
    for number, packet in enumerate(packets):
        socket.send_bytes(b"\xff" * 50 if number in (5, 6) else packet)
    socket.send_bytes(b"")
    before, told = socket.until("error")
    assert (told["error"]["code"], told["error"]["param"]) == ("audio_invalid", "audio")
    assert "1 packets are damaged" in told["error"]["message"] and not before
    socket.take("error")
    _, prompt = commit(socket)
    assert prompt["seconds"] == pytest.approx((len(packets) - 2) * PACKET_SECONDS, abs=0.02)
    socket.leave()


@pytest.mark.parametrize("form", ["webm", "ogg"])
def test_what_cannot_be_read(service: Service, speech: Any, form: str) -> None:
    """Vorbis in Ogg: a stream that is none, or holds something else. It can be begun anew."""
    file = io.BytesIO()
    soundfile.write(file, speech, 24_000, format="OGG", subtype="VORBIS")
    other, (data, _) = file.getvalue(), encoded(speech)
    socket = opened(service, form)
    for _ in range(2):
        socket.send_bytes(other)
        told = socket.take("error")["error"]
        assert told["code"] == "audio_invalid" and "begin anew" in told["message"]
    socket.send("input_audio_buffer.clear")
    socket.take("input_audio_buffer.cleared")
    socket.send("session.update", session={"input_audio_format": "webm"})
    socket.take("session.updated")
    socket.send_bytes(data)
    assert commit(socket)[1]["tokens"] > 90
    socket.leave()


def test_more_than_a_prompt_may_have(serve: Callable[..., Service], speech: Any) -> None:
    """Three minutes of silence are a small message: no more of them is decoded than may be taken."""
    service = serve(max_prompt_seconds=1.0)
    _, packets = encoded(speech)
    socket = opened(service, "opus")
    for packet in packets:
        socket.send_bytes(packet)
    _, told = socket.until("error")
    assert told["error"]["code"] == "audio_too_long"
    while (event := socket.event())["type"] != "error":
        pass
    socket.send("input_audio_buffer.commit")
    _, committed = socket.until("input_audio_buffer.committed")
    assert 0.9 < committed["prompt"]["seconds"] <= 1.0, "what came before is kept"
    assert event["error"]["code"] == "audio_too_long"
    socket.send("session.update", session={"input_audio_format": "webm"})
    socket.take("session.updated")
    silence, _ = encoded(np.zeros(180 * 24_000))
    assert len(silence) < 2**17
    socket.send_bytes(silence)
    assert socket.take("error")["error"]["code"] == "audio_too_long"
    socket.send("input_audio_buffer.commit")
    assert socket.take("error")["error"]["code"] == "audio_too_short", "none of it is taken"
    socket.leave()


def test_a_format_is_not_changed_in_the_middle(service: Service, speech: Any) -> None:
    socket = Socket(service)
    pcm = to_pcm(speech).tobytes()
    socket.send_bytes(pcm[:1_000])
    socket.send("session.update", session={"input_audio_format": "opus"})
    assert socket.take("error")["error"]["param"] == "input_audio_format"
    socket.send_bytes(pcm[1_000:])
    assert commit(socket)[1]["tokens"] == 100
    socket.leave()


def test_a_decoder_that_is_lost_is_replaced(speech: Any) -> None:
    """Killed as a crash would: an error, and the next stream is heard. It ends with its session."""
    _, packets = encoded(speech)
    metrics = Metrics()

    async def use() -> int:
        decoder = LiveDecoder("opus", metrics)
        await decoder.start()
        assert decoder._process is not None
        stream = IncomingOpus(decoder)
        await stream.feed(packets[0], 60.0)
        decoder._process.kill()
        await decoder._process.wait()
        with pytest.raises(DecoderLost):
            await stream.feed(packets[1], 60.0)
        again = IncomingOpus(decoder)
        heard = [await again.feed(packet, 60.0) for packet in packets[:10]]  # a resampler holds the first one back
        assert sum(len(samples) for samples, _ in heard) > 3_000 and all(wrong is None for _, wrong in heard)
        pid = decoder._process.pid
        await decoder.close()
        return pid

    pid = asyncio.run(use())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert metrics.decoders_lost.labels("session")._value.get() == 1


def test_a_decoder_that_does_not_answer_is_ended(speech: Any) -> None:
    async def use() -> None:
        decoder = LiveDecoder("opus", Metrics())
        await decoder.start()
        assert decoder._process is not None
        pid = decoder._process.pid
        os.kill(pid, signal.SIGSTOP)  # as if in an endless loop
        with pytest.raises(DecoderLost):
            await decoder.order(DATA, 60.0, b"\x00", seconds=0.2)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        told, _ = await decoder.order(END, 1.0, b"")
        assert told["samples"] == 0
        await decoder.close()

    asyncio.run(use())
