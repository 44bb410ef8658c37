"""Evaluation on audio that training never saw: the codec, the language model, and the model's closed loop.

Every figure comes with a 95 % bootstrap interval over clips and the conditions that it was made under.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr
import torch
from rich.progress import track
from torch import Tensor

from model.checkpoint import Bundle
from model.constants import FRAME_RATE_HZ, HOP_SAMPLES, SAMPLE_RATE_HZ, VOCABULARY
from model.files import put_json
from model.inference.scoring import MelSource, score
from model.lm.depth_decoder import frames_before
from model.lm.mel import LogMel
from model.training.continuations import TRAP_SECONDS, continued, drift, heard, prompts_of, sound_figures, summary
from model.training.corpus import DataError, find_files, read_audio, render_midi
from model.training.judges import MIN_SECONDS, available, heard_figures, mean_opinion, word_errors, words
from model.training.loop import machine
from model.training.losses import SpectralLoss
from model.training.pitch import pitch_match
from model.training.tuning import in_tune, same_notes

RESAMPLES = 2000
CODEBOOK_STEPS = (1, 2, 4, 8)


def bootstrap(values: npt.ArrayLike, weights: npt.ArrayLike | None = None, seed: int = 0) -> dict[str, float]:
    """Weighted mean over clips with its 95 % bootstrap interval: {"mean", "low", "high"}."""
    array = np.asarray(values, dtype=np.float64)
    weight = np.ones_like(array) if weights is None else np.asarray(weights, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(array), (RESAMPLES, len(array)))
    means = (array[picks] * weight[picks]).sum(1) / weight[picks].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float((array * weight).sum() / weight.sum()), "low": float(low), "high": float(high)}


def si_sdr(made: Tensor, real: Tensor) -> float:
    """Scale-invariant signal-to-distortion ratio of two signals (N,), in dB (arXiv 1811.02508)."""
    made, real = made - made.mean(), real - real.mean()
    target = (made @ real) / (real @ real + 1e-9) * real
    return float(10 * torch.log10(target.square().sum() / ((made - target).square().sum() + 1e-9)))


def intelligibility(made: Tensor, real: Tensor) -> dict[str, float]:
    """STOI and wide-band PESQ (at 16 kHz) of two signals (N,); either is left out where its package cannot tell."""
    figures: dict[str, float] = {}
    try:
        from pystoi import stoi
    except ImportError:
        return figures
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pystoi warns of clips with too little speech, and returns 1e-5
        value = float(stoi(real.numpy(), made.numpy(), SAMPLE_RATE_HZ))
    if value > 1e-4:
        figures["stoi"] = value
    try:
        from pesq import NoUtterancesError, pesq

        narrow = [soxr.resample(x.numpy(), SAMPLE_RATE_HZ, 16_000) for x in (real, made)]
        figures["pesq"] = float(pesq(16_000, *narrow, "wb"))
    except (ImportError, NoUtterancesError):
        pass
    return figures


def codebook_figures(counts: npt.NDArray[np.int64], resamples: int = 200, seed: int = 0) -> list[dict[str, Any]]:
    """How codebooks are used: counts (clips, K, 1024) -> for each, entropy in nats with its interval, and codes used.

    The interval is the basic bootstrap's, over clips: a resample holds fewer different clips, so its entropy lies
    below the sample's, and percentiles would be off by twice that.
    """
    clips, books, _ = counts.shape

    def entropies(total: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        share = total / total.sum(-1, keepdims=True)
        out: npt.NDArray[np.float64] = -(share * np.log(share, where=share > 0, out=np.zeros_like(share))).sum(-1)
        return out

    total = counts.sum(0)
    own = entropies(total)
    rng = np.random.default_rng(seed)
    resampled = np.stack(
        [
            entropies(np.einsum("c,ckv->kv", rng.multinomial(clips, np.full(clips, 1 / clips)), counts))
            for _ in range(resamples)
        ]
    )
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    return [
        {
            "entropy": {"mean": own[k], "low": float(2 * own[k] - high[k]), "high": float(2 * own[k] - low[k])},
            "codes_used": int((total[k] > 0).sum()),
        }
        for k in range(books)
    ]


@torch.inference_mode()
def codec_figures(bundle: Bundle, clips: Sequence[tuple[str, Tensor]]) -> dict[str, Any]:
    """The codec at 1, 2, 4 and 8 codebooks: what a listener hears of it, and each codebook's entropy.

    log_mel: distance in nats. stoi, pesq, si_sdr: as usual. pitch: share of the real clip's voiced frames whose pitch
    the decoded one has within 50 cents. in_tune, same_notes: of music, see `model.training.tuning`.
    """
    spectral, codec = SpectralLoss(), bundle.codec
    rows: dict[int, dict[str, list[float]]] = {}
    counts = np.zeros((len(clips), codec.config.codebooks, VOCABULARY), dtype=np.int64)
    for clip, (_, samples) in enumerate(track(clips, description="codec")):
        codes = codec.encode(samples[None])
        real = samples[: codes.shape[-1] * HOP_SAMPLES]
        for book, own in enumerate(codes[0]):
            counts[clip, book] = np.bincount(own.numpy(), minlength=VOCABULARY)
        for count in (c for c in CODEBOOK_STEPS if c <= codec.config.codebooks):
            made = codec.decode(codes[:, :count])[0]
            figures = {"log_mel": float(spectral(made[None], real[None])[0]), "si_sdr": si_sdr(made, real)}
            heard = {"pitch": pitch_match(made, real), "in_tune": in_tune(made), "same_notes": same_notes(made, real)}
            figures |= {name: value for name, value in heard.items() if value is not None}
            for name, value in (figures | intelligibility(made, real)).items():
                rows.setdefault(count, {}).setdefault(name, []).append(value)
    per_codebook = codebook_figures(counts)
    return {
        "codebooks": {
            str(count): {name: bootstrap(values) | {"clips": len(values)} for name, values in figures.items()}
            for count, figures in rows.items()
        },
        "per_codebook": {str(book + 1): figures for book, figures in enumerate(per_codebook)},
        "entropy_nats": [round(float(figures["entropy"]["mean"]), 3) for figures in per_codebook],
        "codes_used": [figures["codes_used"] for figures in per_codebook],
        "frames": int(counts[:, 0].sum()),
    }


@torch.inference_mode()
def language_figures(bundle: Bundle, clips: Sequence[tuple[str, Tensor]]) -> dict[str, Any]:
    """NLL (nats), perplexity, accuracy, bits per second with real, decoded and masked mel; the unigram's NLL."""
    unigram = -bundle.lm.unigram.double().cpu()
    out: dict[str, Any] = {}
    sources: tuple[MelSource, ...] = ("real", "decoded", "masked") if bundle.lm.config.mel else ("masked",)
    base: list[float] = []
    per_source: dict[str, list[float]] = {}
    for source in sources:
        nll, accuracy, weights = [], [], []
        base = []
        for _, samples in track(clips, description=f"language model, {source} mel"):
            result = score(bundle, samples, mel=source)
            nll.append(result.nll)
            accuracy.append(result.accuracy)
            weights.append(len(result.tokens))
            base.append(float(unigram[result.tokens].mean()))
        per_source[source] = nll
        figure = bootstrap(nll, weights)
        out[source] = {
            "nll": figure,
            "perplexity": float(np.exp(figure["mean"])),
            "bits_per_second": figure["mean"] / float(np.log(2)) * FRAME_RATE_HZ,
            "accuracy": bootstrap(accuracy, weights),
            "below_unigram": bootstrap(np.array(base) - np.array(nll), weights),
            "tokens": int(sum(weights)),
        }
        out["unigram_nll"] = bootstrap(base, weights)
    for other in sources[1:]:
        out[other]["above_real"] = bootstrap(np.array(per_source[other]) - np.array(per_source[sources[0]]), weights)
    return out


@torch.inference_mode()
def fine_figures(bundle: Bundle, clips: Sequence[tuple[str, Tensor]]) -> list[float]:
    """Mean NLL in nats of codebooks 2..K under the depth decoder, teacher-forced, real mel, first 20 s of each clip."""
    mel, model = LogMel(), bundle.lm
    sums, frames = torch.zeros(bundle.codec.config.codebooks - 1), 0
    for _, samples in track(clips, description="depth decoder"):
        codes = bundle.codec.encode(samples[None, : 20 * SAMPLE_RATE_HZ]).transpose(1, 2)  # (1, T, K)
        mel_frames = mel(samples[None, : 20 * SAMPLE_RATE_HZ])
        inputs = torch.cat([torch.full((1, 1), VOCABULARY), codes[:, :-1, 0]], 1)
        shifted = torch.cat([torch.zeros_like(mel_frames[:, :1]), mel_frames[:, :-1]], 1)
        hidden = model(inputs, shifted if model.config.mel else None)
        logprobs = model.fine(hidden, codes, frames_before(codes)).log_softmax(-1)  # (1, T, K-1, 1024)
        sums -= logprobs.gather(-1, codes[..., 1:, None])[..., 0].sum((0, 1))
        frames += codes.shape[1]
    return [round(float(x), 4) for x in sums / max(frames, 1)]


JUDGED_CLIPS, JUDGED_SECONDS, JUDGED_CODEBOOKS = 16, 6.0, (1, 8)


@torch.inference_mode()
def judged_figures(bundle: Bundle, clips: Sequence[tuple[str, Tensor]]) -> dict[str, Any]:
    """DNSMOS of up to 16 clips, real and through the codec, and the share of words that a recogniser hears otherwise.

    Means over clips with intervals; `word_errors` is weighted by the words of the real clip. For speech: of music both
    say nothing. Empty without the extra `judges`.
    """
    chosen = [s[: round(JUDGED_SECONDS * SAMPLE_RATE_HZ)] for _, s in clips if len(s) >= MIN_SECONDS * SAMPLE_RATE_HZ]
    chosen = chosen[:: max(len(chosen) // JUDGED_CLIPS, 1)][:JUDGED_CLIPS]  # spread over the clips' order
    if not available() or not chosen:
        return {}
    marks: dict[str, dict[str, list[float]]] = {}
    errors: dict[str, list[int]] = {}
    said: list[int] = []
    for samples in track(chosen, description="judges"):
        codes = bundle.codec.encode(samples[None])
        depths = [count for count in JUDGED_CODEBOOKS if count <= codes.shape[1]]
        rows = {"real": samples[: codes.shape[-1] * HOP_SAMPLES]}
        rows |= {f"codebooks_{count}": bundle.codec.decode(codes[:, :count])[0] for count in depths}
        reference = words(rows["real"])
        said.append(len(reference))
        for name, own in rows.items():
            for mark, value in mean_opinion(own).items():
                marks.setdefault(name, {}).setdefault(mark, []).append(value)
            if name != "real":
                errors.setdefault(name, []).append(word_errors(words(own), reference))
    out: dict[str, Any] = {name: {mark: bootstrap(v) for mark, v in own.items()} for name, own in marks.items()}
    for name, wrong in errors.items():
        if sum(said):
            counted = np.array([(e / n, n) for e, n in zip(wrong, said, strict=True) if n])
            out[name]["word_errors"] = bootstrap(counted[:, 0], counted[:, 1])
    return out | {"clips": len(chosen)}


CONTINUED_CLIPS, PROMPT_SECONDS, PAUSE_SECONDS = 12, 3.0, 0.3
TEMPERATURES = (1.0, 0.8)
DRIFT_SECONDS = 30.0


def continuation_figures(bundle: Bundle, clips: Sequence[tuple[str, Tensor]]) -> dict[str, Any]:
    """Five seconds after the first three of up to twelve clips, beside the real five: level, silence, in-tune share.

    With the defaults, at temperature 0.8, and after prompts that end in a pause of 0.3 s. `trapped` is the share of
    continuations with a silence of 1.5 s or more. `drift`: the same figures with the defaults, every 5 s over 30.
    With the extra `judges` DNSMOS and the likeness of the voice to the prompt's stand beside them: for speech.
    """
    chosen = [clip for clip in clips if len(clip[1]) >= (PROMPT_SECONDS + 1) * SAMPLE_RATE_HZ][:CONTINUED_CLIPS]
    out: dict[str, Any] = {"prompt_seconds": PROMPT_SECONDS, "trap_seconds": TRAP_SECONDS, "clips": len(chosen)}
    if not chosen:
        return out
    cut = round(PROMPT_SECONDS * SAMPLE_RATE_HZ)
    real = []
    for _, samples in chosen:
        before, after = samples[:cut].numpy(), samples[cut : 8 * SAMPLE_RATE_HZ].numpy()
        real.append(sound_figures(after, before) | heard_figures(after, before))
    names = {name for own in real for name in own}
    out["real"] = {name: float(np.mean([own[name] for own in real if name in own])) for name in sorted(names)}
    for temperature in TEMPERATURES:
        for pause in (0.0, PAUSE_SECONDS):
            prompts = prompts_of(chosen, PROMPT_SECONDS, pause)
            runs = continued(bundle, prompts, temperature=temperature, seeds=(1, 2))
            name = f"temperature_{temperature:g}" + ("_after_pause" if pause else "")
            out[name] = summary(heard(runs, prompts, heard_figures))
    prompts = prompts_of(chosen, PROMPT_SECONDS)
    out["drift"] = drift(continued(bundle, prompts, seconds=DRIFT_SECONDS), prompts, judge=heard_figures)
    return out


def load_clips(paths: Sequence[Path], limit: int | None = None, max_seconds: float = 60.0) -> list[tuple[str, Tensor]]:
    """Clips under the given files and folders, at most ``max_seconds`` of each; unreadable ones are an error."""
    clips = []
    for path in find_files(paths)[:limit]:
        samples = render_midi(path) if path.suffix.lower() in {".mid", ".midi"} else read_audio(path)
        clips.append((path.name, torch.from_numpy(samples[: round(max_seconds * SAMPLE_RATE_HZ)])))
    if not clips:
        raise DataError("nothing to evaluate")
    return clips


def evaluate(
    bundle: Bundle, paths: Sequence[Path], out: Path | None = None, limit: int | None = None, max_seconds: float = 60.0
) -> dict[str, Any]:
    """All figures of a bundle on some audio, returned and, with ``out``, written as JSON with their conditions."""
    clips = load_clips(paths, limit, max_seconds)
    report = {
        "bundle": bundle.name,
        "hashes": bundle.hashes,
        "clips": len(clips),
        "seconds": round(sum(len(samples) for _, samples in clips) / SAMPLE_RATE_HZ, 1),
        "codec": codec_figures(bundle, clips),
        "language_model": language_figures(bundle, clips),
        "fine_nll": fine_figures(bundle, clips),
        "judges": judged_figures(bundle, clips),
        "continuations": continuation_figures(bundle, clips),
        "conditions": machine(),
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        put_json(out, report, indent=1)
    return report
