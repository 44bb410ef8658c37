"""Sources and filters: pitch, phase that runs on, noise by number, minimum phase, power, and no step at a joint."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from model.codec.decoders.source_filter import (
    BANDS,
    BINS,
    FFT,
    RESPONSE,
    SUBFRAME,
    SourceFilterDecoder,
    Sources,
    band_shapes,
    log_responses,
    noise,
)
from model.codec.encoders.spectral import NOTES, note_hertz
from model.constants import HOP_SAMPLES, SAMPLE_RATE_HZ


@pytest.fixture(scope="module")
def decoder() -> SourceFilterDecoder:
    torch.manual_seed(0)
    return SourceFilterDecoder(16, 2, 3, 7).eval().requires_grad_(False)


def constant(hertz: float, frames: int) -> Tensor:
    return torch.full((1, frames), hertz, dtype=torch.float64)


class TestPulses:
    @pytest.mark.parametrize("hertz", [71.0, 75.0, 133.7, 300.0, 480.0])
    def test_have_the_pitch(self, decoder: SourceFilterDecoder, hertz: float) -> None:
        tone = constant(hertz, 150)
        made = decoder.pulses(tone, decoder.start(tone))[0][0]
        spectrum = torch.fft.rfft(made * torch.hann_window(len(made)), n=2**18).abs()
        for harmonic in (1, 2, 7):
            near = round(harmonic * hertz * 2**18 / SAMPLE_RATE_HZ)
            window = spectrum[near - 200 : near + 201]
            assert abs(int(window.argmax()) - 200) <= 3, f"harmonic {harmonic}"
            assert float(window.max()) == pytest.approx(float(spectrum.max()), rel=0.05)  # all are equally strong

    def test_have_power_up_to_the_highest_harmonic(self, decoder: SourceFilterDecoder) -> None:
        tone = constant(150.0, 150)
        made = decoder.pulses(tone, decoder.start(tone))[0][0]
        assert float(made.square().mean()) == pytest.approx(11_000 / SAMPLE_RATE_HZ, rel=0.02)
        spectrum = torch.fft.rfft(made * torch.hann_window(len(made))).abs()
        above = round(11_200 / SAMPLE_RATE_HZ * len(made))
        assert float(spectrum[above:].max()) < 1e-3 * float(spectrum.max())

    def test_run_on(self, decoder: SourceFilterDecoder) -> None:
        glide = torch.linspace(100, 260, 30, dtype=torch.float64)[None]
        start = decoder.start(glide)
        whole, end = decoder.pulses(glide, start)
        first, middle = decoder.pulses(glide[:, :13], start)
        rest, last = decoder.pulses(glide[:, 13:], start._replace(phase=middle, hertz=glide[:, 12]))
        torch.testing.assert_close(torch.cat([first, rest], -1), whole, rtol=0, atol=1e-4)
        torch.testing.assert_close(last, end, rtol=0, atol=1e-9)

    def test_change_little_where_a_harmonic_enters(self, decoder: SourceFilterDecoder) -> None:
        below, above = constant(11_000 / 50 - 1e-6, 6), constant(11_000 / 50 + 1e-6, 6)
        one, other = (decoder.pulses(tone, decoder.start(tone))[0] for tone in (below, above))
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3)


class TestNoise:
    def test_is_white_and_of_unit_power(self) -> None:
        made = noise(torch.tensor([7 * HOP_SAMPLES]), 200_000)[0].double()
        assert float(made.mean()) == pytest.approx(0.0, abs=0.01)
        assert float(made.square().mean()) == pytest.approx(1.0, abs=0.01)
        for lag in (1, 2, 160, 320):
            assert float((made[lag:] * made[:-lag]).mean()) == pytest.approx(0.0, abs=0.01)

    def test_is_decided_by_its_number_alone(self) -> None:
        both = noise(torch.tensor([0, 2**33 + 5]), 900)
        assert torch.equal(both[0, 500:], noise(torch.tensor([500]), 400)[0])
        assert torch.equal(both[1, 500:], noise(torch.tensor([2**33 + 505]), 400)[0])

    def test_is_splitmix64(self) -> None:
        state, wanted = 0, []
        for _ in range(3):  # by the published steps, in integers of any size
            state = (state + 0x9E3779B97F4A7C15) % 2**64
            z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
            wanted.append(((z ^ (z >> 31)) >> 40) / 2**24)
        found = noise(torch.tensor([0]), 3)[0].double().numpy() / math.sqrt(12) + 0.5
        np.testing.assert_allclose(found, wanted, atol=1e-7)


class TestFilters:
    def test_bands_share_every_bin(self) -> None:
        torch.testing.assert_close(band_shapes().sum(0), torch.ones(BINS, dtype=torch.float64))

    def test_are_of_minimum_phase(self) -> None:
        gains, phases = log_responses()
        logs = torch.randn(BANDS, generator=torch.Generator().manual_seed(1))
        response = torch.polar(torch.exp(logs @ gains), logs @ phases)
        torch.testing.assert_close(response.abs().log(), logs @ gains, rtol=0, atol=1e-5)
        heard = torch.fft.irfft(response, n=FFT)
        # of all responses with these magnitudes the one of minimum phase has its energy first
        assert float(heard[: FFT // 4].square().sum() / heard.square().sum()) > 0.95
        reversed_energy = torch.fft.irfft(response.conj(), n=FFT)[: FFT // 4].square().sum()
        assert float(reversed_energy) < float(heard[: FFT // 4].square().sum())

    def test_flat_gains_change_nothing(self, decoder: SourceFilterDecoder) -> None:
        source = torch.randn(1, 2, 4 * SUBFRAME)
        levels = torch.tensor([1.0, 0.0]).expand(1, 4, 2).contiguous()
        start = decoder.start(constant(100.0, 2))._replace(levels=levels[:, 0])
        heard, ringing = decoder.filtered(source, levels, torch.zeros(1, 4, 2, BANDS), start)
        torch.testing.assert_close(heard, source[:, 0], rtol=0, atol=1e-5)
        assert float(ringing.abs().max()) < 1e-5

    def test_ring_on(self, decoder: SourceFilterDecoder) -> None:
        generator = torch.Generator().manual_seed(3)
        source, levels = torch.randn(1, 2, 8 * SUBFRAME, generator=generator), torch.rand(1, 8, 2, generator=generator)
        shapes = torch.randn(1, 8, 2, BANDS, generator=generator)
        start = decoder.start(constant(100.0, 4))
        whole, last = decoder.filtered(source, levels, shapes, start)
        cut = 4 * SUBFRAME
        first, middle = decoder.filtered(source[..., :cut], levels[:, :4], shapes[:, :4], start)
        going_on = start._replace(levels=levels[:, 3], ringing=middle)
        rest, end = decoder.filtered(source[..., cut:], levels[:, 4:], shapes[:, 4:], going_on)
        torch.testing.assert_close(torch.cat([first, rest], -1), whole, rtol=0, atol=1e-5)
        torch.testing.assert_close(end, last, rtol=0, atol=1e-5)
        assert middle.shape == (1, RESPONSE)

    def test_level_moves_on_a_line(self, decoder: SourceFilterDecoder) -> None:
        source = torch.ones(1, 2, 2 * SUBFRAME)
        levels = torch.tensor([[[1.0, 0.0], [0.5, 0.0]]])
        heard, _ = decoder.filtered(source, levels, torch.zeros(1, 2, 2, BANDS), decoder.start(constant(100.0, 1)))
        wanted = torch.cat([torch.arange(1, 161) / 160, 1 - 0.5 * torch.arange(1, 161) / 160])
        torch.testing.assert_close(heard[0], wanted, rtol=0, atol=1e-4)


class TestSines:
    @pytest.mark.parametrize("note", [9, 33, 45, 61, 90])
    def test_play_their_note(self, decoder: SourceFilterDecoder, note: int) -> None:
        amplitudes = torch.zeros(1, 150, NOTES)
        amplitudes[..., note] = 0.5
        made = decoder.sines(amplitudes, decoder.start(constant(100.0, 75)))[0]
        spectrum = torch.fft.rfft((made * torch.hann_window(len(made))).double(), n=2**18).abs()
        found = float(spectrum.argmax()) * SAMPLE_RATE_HZ / 2**18
        assert abs(1200 * math.log2(found / float(note_hertz()[note]))) < 8
        assert float(made[SUBFRAME:].abs().max()) == pytest.approx(0.5, abs=0.01)

    def test_run_on(self, decoder: SourceFilterDecoder) -> None:
        amplitudes = torch.rand(1, 40, NOTES, generator=torch.Generator().manual_seed(5)) * 0.05
        start = decoder.start(constant(100.0, 20))
        whole = decoder.sines(amplitudes, start)
        first = decoder.sines(amplitudes[:, :14], start)
        later = start._replace(frames=start.frames + 7, amplitudes=amplitudes[:, 13])
        rest = decoder.sines(amplitudes[:, 14:], later)
        torch.testing.assert_close(torch.cat([first, rest], -1), whole, rtol=0, atol=2e-5)

    def test_keep_their_phase_for_hours(self, decoder: SourceFilterDecoder) -> None:
        amplitudes = torch.full((1, 2, NOTES), 0.01)
        start = decoder.start(constant(100.0, 1))
        hours = start._replace(frames=torch.tensor([75 * 3600 * 24]), amplitudes=amplitudes[:, 0])
        again = hours._replace(frames=hours.frames + 3 * 75)  # whole cycles of 440 Hz
        one, other = decoder.sines(amplitudes, hours), decoder.sines(amplitudes, again)
        assert bool(torch.isfinite(one).all())
        assert not torch.equal(one, other)


class TestDecoder:
    def test_silent_heads_are_silent(self) -> None:
        silent = SourceFilterDecoder(16, 2, 3, 7).eval()
        with torch.no_grad():
            silent.head.weight.zero_()
            silent.head.bias.fill_(-9.0)
            made = silent(torch.randn(1, 128, 20))
        assert float(made.abs().max()) < 1e-3

    def test_no_clicks_where_frames_join(self, decoder: SourceFilterDecoder) -> None:
        latents = torch.randn(1, 128, 1, generator=torch.Generator().manual_seed(6)).expand(1, 128, 60)
        made = decoder(latents)[0, 0]
        steps = (made[1:] - made[:-1]).abs()[20 * HOP_SAMPLES :]
        at_joints = steps[HOP_SAMPLES - 1 :: HOP_SAMPLES]
        assert float(at_joints.mean()) < 2 * float(steps.mean())

    def test_gradient_reaches_all_that_it_should(self) -> None:
        torch.manual_seed(0)
        learning = SourceFilterDecoder(16, 2, 3, 7)
        learning(torch.randn(2, 128, 12)).square().mean().backward()
        without = {name for name, parameter in learning.named_parameters() if parameter.grad is None}
        assert without == {"bins.weight", "bins.bias"}  # taught by the real pitch

    def test_state_is_of_rows(self, decoder: SourceFilterDecoder) -> None:
        _, state = decoder.render(torch.randn(3, 5, 16))
        assert isinstance(state, Sources)
        assert all(len(part) == 3 for part in state)
        assert state.frames.tolist() == [5, 5, 5]
