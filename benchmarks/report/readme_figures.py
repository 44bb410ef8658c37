"""The README's five figures, each with a word on what is good."""

from pathlib import Path

from benchmarks.report.pages import Report, interval, loaded, table
from benchmarks.report.speed_tables import milliseconds, on

NEEDED = ("eval_speech", "eval_music", "closed_loop", "streams", "first_audio")


def sound(speech: Report) -> list[str]:
    """How well the codec's sound agrees with the original."""
    best = speech["codec"]["codebooks"]["8"]
    return [
        "speech through the codec: PESQ, STOI",
        f"{interval(best['pesq'])}, {interval(best['stoi'], 3)}",
        "at most 4.6 and 1: no difference to the original",
    ]


def likelihood(speech: Report, music: Report) -> list[str]:
    """How much the past tells of the next token."""
    below = [interval(one["language_model"]["real"]["below_unigram"]) for one in (speech, music)]
    return [
        "NLL below the unigram, nats: speech, piano",
        f"{below[0]}, {below[1]}",
        "0 where the past tells nothing; more is better",
    ]


def one_stream(loop: Report) -> list[str]:
    """How fast one continuation is made."""
    return [
        "one stream on one core: times real time",
        f"{loop['times_real_time']['step, 8 codebooks']:.1f}",
        "above 1 it keeps up with a listener; the goal was 8",
    ]


def live_streams(report: Report) -> list[str]:
    """How many listeners a server has at once."""
    return [
        f"live streams at once on {report['conditions']['cores']} cores",
        str(report["live_streams"]["http"]),
        f"none has a gap with {report['conditions']['buffer_seconds']:g} s held back; the goal was 32",
    ]


def first_audio(report: Report) -> list[str]:
    """How long a listener waits."""
    waits = report["alone"]["3 s prompt"]["first_audio_seconds"]
    return [
        "first audio after a prompt of 3 s: p50, p95",
        f"{milliseconds(waits['p50'])}, {milliseconds(waits['p95'])}",
        "what a listener waits; the goal was a p50 of 120 ms",
    ]


def readme_figures(folder: Path) -> list[str]:
    """A table of five rows; nothing while a result is missing."""
    reports = [loaded(folder, name) for name in NEEDED]
    if any(report is None for report in reports):
        return []
    speech, music, loop, streams, first = (report for report in reports if report is not None)
    rows = [sound(speech), likelihood(speech, music), one_stream(loop), live_streams(streams), first_audio(first)]
    return [
        *table(["what", "figure", "what is good"], rows),
        "All at 8 codebooks, on audio that training never saw, with 95 % intervals in brackets; speed with client and",
        f"server on one machine ({on(loop['conditions'])}).",
        "",
    ]
