"""The codec on audio that training never saw: sound at 1, 2, 4 and 8 codebooks, pitch, and how codebooks are used.

    python -m benchmarks.quality.codec --speech FOLDER --music FOLDER --out benchmarks/results/codec.json

Beside the codebooks stand the encoder's latents without quantising, which tell how much the quantiser costs. "locked"
is the share of voiced frames whose pitch lies within 25 cents of a multiple of the frame rate: in the real clip by
chance.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import DEFAULT, RESULTS
from model.checkpoint import Bundle, load_bundle
from model.constants import FRAME_RATE_HZ, HOP_SAMPLES
from model.files import put_json
from model.training.evaluate import bootstrap, codec_figures, intelligibility, load_clips, si_sdr
from model.training.loop import machine
from model.training.losses import SpectralLoss
from model.training.pitch import pitch, pitch_match

Clips = list[tuple[str, Tensor]]


def locked(samples: Tensor, cents: float = 25.0) -> float | None:
    """Share of a clip's (N,) voiced frames whose pitch is near a multiple of the frame rate; None without any."""
    (hertz,), (voiced,) = pitch(samples[None])
    if not bool(voiced.any()):
        return None
    ratio = hertz[voiced] / FRAME_RATE_HZ
    near = (ratio / ratio.round().clamp_min(1)).log2().abs() < cents / 1200
    return float(near.float().mean())


@torch.inference_mode()
def latents_figures(bundle: Bundle, clips: Clips) -> dict[str, Any]:
    """Sound of the latents without quantising, and pitch locked to the frame rate, real and at all codebooks."""
    spectral, codec = SpectralLoss(), bundle.codec
    rows: dict[str, list[float]] = {}
    lock: dict[str, list[float]] = {"real": [], "decoded": []}
    for _, samples in clips:
        real = samples[: len(samples) // HOP_SAMPLES * HOP_SAMPLES]
        latents = codec.encoder(real[None, None])
        made = codec.decoder(latents)[0, 0]
        figures = {"log_mel": float(spectral(made[None], real[None])[0]), "si_sdr": si_sdr(made, real)}
        if (match := pitch_match(made, real)) is not None:
            figures["pitch"] = match
        for name, value in (figures | intelligibility(made, real)).items():
            rows.setdefault(name, []).append(value)
        coded = codec.decode(codec.quantize(latents))[0]
        for name, signal in (("real", real), ("decoded", coded)):
            if (share := locked(signal)) is not None:
                lock[name].append(share)
    return {
        "latents": {name: bootstrap(values) | {"clips": len(values)} for name, values in rows.items()},
        "locked": {name: bootstrap(values) | {"clips": len(values)} for name, values in lock.items() if values},
    }


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=DEFAULT)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--music", type=Path, required=True)
    parser.add_argument("--max-seconds", type=float, default=20.0, help="of a clip")
    parser.add_argument("--limit", type=int, default=None, help="clips of each kind")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "codec.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bundle = load_bundle(arguments.bundle)
    report: dict[str, Any] = {"bundle": bundle.name, "codec_sha256": bundle.hashes.get("codec.safetensors", "")}
    for kind in ("speech", "music"):
        clips = load_clips([getattr(arguments, kind)], arguments.limit, arguments.max_seconds)
        report[kind] = {"clips": len(clips)} | codec_figures(bundle, clips) | latents_figures(bundle, clips)
        report["conditions"] = machine() | {"max_seconds": arguments.max_seconds}
        put_json(arguments.out, report, indent=1)  # after each kind: a kill leaves the first


if __name__ == "__main__":
    main()
