"""Consistency pairs are fair, and their scores are those of POST /score."""

import numpy as np
import pytest
import torch

from benchmarks.common import Subject
from benchmarks.quality import consistency_pairs as made
from benchmarks.quality.consistency import SCORES, WINDOW_FRAMES, accuracy, measure, score_clips, verdicts
from model.checkpoint import Bundle
from model.inference.scoring import Window, score
from tests.support.signals import make_speech_like

Clip = tuple[str, str, made.Signal]


def speaker(name: str, seeds: tuple[int, ...], pitch: float) -> list[Clip]:
    """Clips of one voice: speech-like noises, played faster or slower."""
    clips = []
    for seed in seeds:
        samples = make_speech_like(4.2 * pitch + 0.2, seed).double().numpy()
        places = np.arange(0, len(samples) - 1, pitch)
        clips.append((f"{name}-{seed}", name, np.interp(places, np.arange(len(samples)), samples)))
    return clips


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [
        *speaker("a", (1, 2), 1.0),
        *speaker("b", (3, 4), 1.3),
        ("c-5", "c", speaker("c", (5,), 0.8)[0][2][:40_000]),
    ]


@pytest.fixture(scope="module")
def pairs(clips: list[Clip]) -> list[made.Pair]:
    return list(made.pairs(clips, 3))


def test_both_orders_of_every_kind(pairs: list[made.Pair]) -> None:
    counts = {(kind, base): 0 for kind in made.KINDS for base in ("a-1", "a-2", "b-3")}
    for pair in pairs:
        counts[pair.kind, pair.base] += 1
    assert set(counts.values()) == {2}


def test_sides_are_equal_up_to_the_joint_and_differ_after_it(pairs: list[made.Pair]) -> None:
    for pair in pairs:
        assert pair.consistent.shape == pair.changed.shape == (2 * made.HALF,)
        assert np.array_equal(pair.consistent[: made.HALF], pair.changed[: made.HALF])
        assert not np.allclose(pair.consistent[made.HALF + made.FADE :], pair.changed[made.HALF + made.FADE :])
        assert np.abs(pair.consistent).max() < 1.5 and np.abs(pair.changed).max() < 1.5


def test_orders_mirror_each_other(pairs: list[made.Pair]) -> None:
    """What one pair turns into is what the other begins with, in a second instance where there is one."""
    by_kind: dict[tuple[str, str], list[made.Pair]] = {}
    for pair in pairs:
        by_kind.setdefault((pair.kind, pair.base), []).append(pair)
    after = slice(made.HALF + made.FADE, None)
    for one, other in by_kind.values():
        assert np.array_equal(one.changed[after], other.consistent[after])
        assert np.array_equal(other.changed[after], one.consistent[after])


def test_same_pairs_from_the_same_seed(clips: list[Clip], pairs: list[made.Pair]) -> None:
    again, other = list(made.pairs(clips, 3)), list(made.pairs(clips, 3, seed=1))
    assert all(np.array_equal(x.changed, y.changed) for x, y in zip(pairs, again, strict=True))
    assert any(not np.array_equal(x.changed, y.changed) for x, y in zip(pairs, other, strict=True))


def rms(signal: made.Signal) -> float:
    return float(np.sqrt(np.mean(signal**2)))


def test_levels_are_matched_where_they_are_not_the_question(pairs: list[made.Pair]) -> None:
    after = slice(made.HALF + made.FADE, None)
    for pair in pairs:
        quotient = rms(pair.changed[after]) / rms(pair.consistent[after])
        if pair.kind == "gain":
            assert 20 * abs(np.log10(quotient)) == pytest.approx(12.0, abs=0.2)
        elif pair.kind == "speaker":
            assert quotient == pytest.approx(1.0, abs=0.03)
            assert rms(pair.consistent[: made.HALF]) == pytest.approx(made.RMS, rel=0.01)
        else:
            assert quotient == pytest.approx(1.0, abs=0.35)


def test_join_fades_from_the_joint_on() -> None:
    joined = made.join(np.zeros(2 * made.HALF), np.ones(2 * made.HALF))
    assert not joined[: made.HALF].any()
    assert (joined[made.HALF + made.FADE :] == 1).all()
    assert (np.diff(joined) >= 0).all()
    same = made.level(np.random.default_rng(0).standard_normal(2 * made.HALF))
    assert np.allclose(made.join(same, same), same)


@pytest.mark.parametrize("rt60", made.RT60_SECONDS)
def test_rooms_decay_as_stated(rt60: float) -> None:
    response = made.impulse_response(rt60, np.random.default_rng(0))
    energy = np.cumsum(response[1:][::-1] ** 2)[::-1]  # Schroeder's backward integral
    decay = 10 * np.log10(energy / energy[0])
    times = np.arange(len(decay)) / 24_000
    part = (decay < -5) & (decay > -35)
    slope = np.polyfit(times[part], decay[part], 1)[0]
    assert -60 / slope == pytest.approx(rt60, rel=0.08)
    assert response[0] ** 2 == pytest.approx(float((response[1:] ** 2).sum()), rel=0.15)  # 0 dB


@pytest.mark.parametrize(("colour", "slope"), [("white", 0.0), ("pink", -10.0), ("brown", -20.0)])
def test_noises_have_their_colour(colour: str, slope: float) -> None:
    noise = made.coloured(colour, 240_000, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(noise)) ** 2
    frequency = np.fft.rfftfreq(len(noise), 1 / 24_000)
    low, high = (power[(frequency > f) & (frequency < 1.5 * f)].mean() for f in (200, 2000))
    assert 10 * np.log10(high / low) == pytest.approx(slope, abs=1.0)  # a decade
    assert rms(noise) == pytest.approx(1.0)


def test_tilt_is_a_slope_an_octave() -> None:
    noise = np.random.default_rng(0).standard_normal(48_000)
    quotient = np.abs(np.fft.rfft(made.tilted(noise, 3.0)) / np.fft.rfft(noise))
    frequency = np.fft.rfftfreq(48_000, 1 / 24_000)
    at = [quotient[np.argmin(abs(frequency - f))] for f in (500, 1000, 2000)]
    assert 20 * np.log10(at[1] / at[0]) == pytest.approx(3.0, abs=0.01)
    assert 20 * np.log10(at[2] / at[1]) == pytest.approx(3.0, abs=0.01)
    assert rms(made.tilted(noise, 3.0)) == pytest.approx(rms(noise))


def test_spread_takes_speakers_in_turn() -> None:
    assert made.spread(["a", "a", "a", "b", "c", "c"], 4) == [0, 3, 4, 1]
    assert made.spread(["a", "a"], 9) == [0, 1]
    assert made.spread([], 9) == []


@pytest.mark.parametrize("masked", [False, True])
def test_scores_are_those_of_the_endpoint(bundle: Bundle, pairs: list[made.Pair], masked: bool) -> None:
    subject = Subject("tiny", bundle, masked)
    clip = torch.from_numpy(pairs[0].changed).float()
    tokens, mel_frames = bundle.codec.encode(clip[None])[:, 0], bundle.mel(clip[None])
    found = score_clips(subject, tokens, mel_frames)
    window = Window(made.HALF_FRAMES, made.HALF_FRAMES + WINDOW_FRAMES, alone=True)
    expected = score(bundle, clip, mel="masked" if masked else "real", window=window)
    assert expected.window is not None
    local = expected.window.nll
    wanted = {
        "whole": expected.nll,
        "window": local,
        "window - unigram": local - expected.window.baseline_nll("unigram"),
        "window - alone": local - expected.window.baseline_nll("alone"),
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(wanted, abs=1e-3)


def test_verdicts() -> None:
    assert verdicts(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 1.0])) == [1.0, 0.5, 0.0]


def test_accuracy_draws_clips_not_pairs() -> None:
    clear = accuracy(["a", "a", "b", "b"], [1, 0, 1, 0])  # every clip is right half of the time: no spread
    assert clear == {"mean": 0.5, "low": 0.5, "high": 0.5}
    spread = accuracy(["a", "a", "b", "b"], [1, 1, 0, 0])
    assert (spread["mean"], spread["low"], spread["high"]) == (0.5, 0.0, 1.0)


def test_measure(bundle: Bundle, pairs: list[made.Pair]) -> None:
    report = measure([Subject("one", bundle), Subject("two", bundle, masked=True)], pairs[:4])
    assert set(report) == {"one", "two"}
    assert set(report["one"]) == {pair.kind for pair in pairs[:4]} | {"all"}
    for scores in report["one"].values():
        assert set(scores) == set(SCORES)
        assert all(0 <= one["low"] <= one["mean"] <= one["high"] <= 1 for one in scores.values())
