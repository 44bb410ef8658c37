"""What teaches a `harmonic` decoder's reader: the pitch of the real sound, and where there is no single one.

Pitch is a choice among bins (as in CREPE, arXiv 1802.06182): where codes leave two octaves open, a mean would be
neither. Music never counts as voiced: a chord has no pitch, and its frames stay as the `frame` decoder makes them.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from model.codec.codec import Codec
from model.codec.decoders.harmonic import band_hertz
from model.training.corpus import DataError
from model.training.pitch import PitchTracker, pitch


def with_oscillators(codec: Codec) -> Codec:
    """A codec with the same encoder, codebooks and frames, and a reader of random weights.

    Raises DataError when the codec's decoder is not at 75 Hz. One that has oscillators is returned as it is.
    """
    if codec.config.decoder == "harmonic":
        return codec
    if codec.config.decoder != "frame":
        raise DataError("oscillators need a `frame` decoder to begin from")
    made = Codec(replace(codec.config, decoder="harmonic")).eval()
    known = {
        name.replace("decoder.", "decoder.frame.", 1) if name.startswith("decoder.") else name: tensor
        for name, tensor in codec.state_dict().items()
    }
    made.load_state_dict(made.state_dict() | known)
    return made


def heard_pitch(real: Tensor, speech: Tensor, tracker: PitchTracker) -> tuple[Tensor, Tensor]:
    """Samples (B, N) and which rows are speech, (B,) bool -> pitch in Hz and whether voiced, (B, N // 320) each"""
    hertz, voiced = pitch(real, tracker)
    return hertz, voiced & speech[:, None]


def pitch_distance(logits: Tensor, log_hertz: Tensor, hertz: Tensor, voiced: Tensor, spread: float) -> Tensor:
    """Cross-entropy with a bell about the real pitch, whose deviation is ``spread`` bins; mean of the voiced frames.

    logits (B, T, bins), log_hertz (bins,), hertz (B, T), voiced (B, T) bool or float
    """
    off = (log_hertz - hertz.log()[..., None]) / (log_hertz[1] - log_hertz[0])
    wanted = torch.softmax(-0.5 * (off / spread).square(), -1).to(logits.dtype)
    distance = -(wanted * logits.log_softmax(-1)).sum(-1)
    return (distance * voiced).sum() / voiced.sum().clamp_min(1)


def share_distance(logits: Tensor, voiced: Tensor, full_hertz: float, none_hertz: float) -> Tensor:
    """Binary cross-entropy of the shares' logits (B, T, bands) where voiced (B, T) or not.

    Voiced sound counts as all harmonics below ``full_hertz``, as none at ``none_hertz``.
    """
    harmonic = ((none_hertz - band_hertz()) / (none_hertz - full_hertz)).clamp(0.0, 1.0).to(logits.device)
    return F.binary_cross_entropy_with_logits(logits, voiced[..., None] * harmonic)
