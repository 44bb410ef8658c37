"""The step that other runtimes get is the model's step."""

import numpy as np
import torch

from benchmarks.speed.exported import ExportedStep, HostCaches
from model.checkpoint import Bundle
from model.constants import SAMPLE_RATE_HZ, VOCABULARY
from model.inference.prefill import prefill


@torch.inference_mode()
def test_the_exported_step_makes_the_logits_of_the_slots(bundle: Bundle, speech_like: torch.Tensor) -> None:
    """Of rows that are given different tokens, over several steps: what a step keeps is what the next one reads."""
    rows, steps = 3, 6
    prompt = prefill(bundle, speech_like[: SAMPLE_RATE_HZ // 3])
    slots = prompt.cache.length + steps
    rings = bundle.lm.new_slots(rows)
    for row in range(rows):
        rings.join(row, prompt.cache)
    exported, caches = ExportedStep(bundle.lm, slots), HostCaches(prompt.cache, rows, slots)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        tokens = torch.randint(0, VOCABULARY, (rows, 1), generator=generator)
        mel = torch.randn(rows, 1, 64, generator=generator)
        wanted = bundle.lm.logits(bundle.lm(tokens, mel, cache=rings)[:, 0])
        rings.advance(torch.ones(rows, dtype=torch.bool))
        made, mel_new, new = exported(tokens, mel, torch.from_numpy(caches.lengths), caches.mel, caches.stack)
        caches.put(*([(key.numpy(), value.numpy()) for key, value in pairs] for pairs in (mel_new, new)))
        np.testing.assert_allclose(made, wanted, atol=2e-5)
    assert wanted.std() > 0.01 and not torch.equal(made[0], made[1])
