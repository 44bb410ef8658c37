"""Loads that were not run: first audio against the rate of arrivals, and the listeners that one machine holds."""

from typing import Any

import numpy as np

from benchmarks.scaling.costs import Costs
from benchmarks.scaling.simulation import Asked, Heard, Machine, simulate

MACHINE = Machine()  # 2 cores and the server's defaults
PROMPT_SECONDS, LISTEN_SECONDS = 3.0, 30.0  # a listener hears 30 s (max_seconds) of each prompt, then asks again
FIRST_AUDIO_SECONDS = 0.25  # 95 of 100 listeners hear something within
HELD_SECONDS = 0.1  # what a player holds back: 99 of 100 hear no gap
RUN_SECONDS, WARM_SECONDS, SEEDS = 120.0, 40.0, 3
RATES = (0.25, 0.5, 1.0, 1.25, 1.5, 1.75, 2.0)  # requests a second, each for LISTEN_SECONDS
PROMPTS = (1.0, 3.0, 10.0, 30.0)


def arrivals(rate: float, seed: int, prompt: float, made: float) -> list[Asked]:
    """Poisson, for RUN_SECONDS."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, round(RUN_SECONDS * rate * 2) + 20)
    return [Asked(float(at), prompt, made) for at in np.cumsum(gaps) if at < RUN_SECONDS]


def steady(costs: Costs, rate: float, prompt: float = PROMPT_SECONDS, made: float = LISTEN_SECONDS) -> list[Heard]:
    """Listeners of some runs that came when the server was at work already."""
    runs = [simulate(MACHINE, costs, arrivals(rate, seed, prompt, made)) for seed in range(SEEDS)]
    return [one for run in runs for one in run if one.asked.at > WARM_SECONDS]


def told(heard: list[Heard]) -> dict[str, float]:
    """What they got: seconds, and shares of all."""
    served = [one for one in heard if not one.refused]
    first = [one.first_audio for one in served] or [float("nan")]
    return {
        "requests": len(heard),
        "first_audio_p50": float(np.percentile(first, 50)),
        "first_audio_p95": float(np.percentile(first, 95)),
        "refused": 1 - len(served) / len(heard),
        "without_a_gap": sum(one.short <= HELD_SECONDS for one in served) / max(1, len(served)),
    }


def good(found: dict[str, float]) -> bool:
    return (
        found["first_audio_p95"] <= FIRST_AUDIO_SECONDS and found["without_a_gap"] >= 0.99 and found["refused"] <= 0.001
    )


def load_curve(costs: Costs) -> list[dict[str, float]]:
    """First audio against the rate."""
    return [{"rate": rate, "listeners": rate * LISTEN_SECONDS, **told(steady(costs, rate))} for rate in RATES]


def capacity(costs: Costs) -> dict[str, Any]:
    """The most listeners of one machine by length of prompt (to four of them), and the goals for that."""
    most = {}
    for prompt in PROMPTS:
        # the wait for a longer prompt is the reading itself: the goal is what the reading takes, and as much waiting
        goal = max(FIRST_AUDIO_SECONDS, 2.5 * costs.prefill_seconds(prompt))
        low, high = 0.0, 2.0
        while high - low > 1 / 8:
            rate = (low + high) / 2
            found = told(steady(costs, rate, prompt)) | {"goal": goal}
            fits = good(found | {"first_audio_p95": found["first_audio_p95"] * FIRST_AUDIO_SECONDS / goal})
            low, high = (rate, high) if fits else (low, rate)
        most[f"{prompt:g}"] = {"listeners": low * LISTEN_SECONDS, "first_audio_p95_goal": goal}
    return {"listen_seconds": LISTEN_SECONDS, "cores": MACHINE.cores, "by_prompt_seconds": most}
