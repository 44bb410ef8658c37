"""From training runs to weights: a codec run gives codec.safetensors, a language-model run gives a bundle.

The codec is rounded to float16 when it is exported, which is *before* the language model is trained on its tokens: what
is served is then exactly what made the tokens.
"""

import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from model.checkpoint import (
    CODEC,
    CONFIG,
    DECODER,
    Bundle,
    load_codec,
    read_config,
    save_bundle,
    save_codec,
    sha256_of,
    tokeniser_sha256,
)
from model.codec.codec import Codec
from model.codec.config import CodecConfig
from model.codec.encodec_24khz import FILE_NAME, load_meta_codec
from model.files import put_json
from model.lm.config import DecoderConfig
from model.lm.hybrid_lm import HybridLM
from model.training.corpus import DataError
from model.training.pitch_targets import with_oscillators
from model.training.token_set import TokenSet

CODEC_CONFIG = "codec.json"
META = Path("meta")  # stands for Meta's checkpoint by the `encodec` package's own download


def _is_meta(source: Path) -> bool:
    """Whether a codec is Meta's: by name, or as a checkpoint file. All others are folders."""
    return source == META or source.is_file()


def _meta_file(source: Path) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / FILE_NAME if source == META else source


def _run_settings(run: Path) -> dict[str, Any]:
    """What a run was started with. Raises DataError when the folder holds none, or one without a checkpoint."""
    known = run / "settings.json"
    if not known.exists():
        raise DataError(f"{run} holds no training run")
    if not (run / "checkpoint.pt").exists():
        raise DataError(f"the run in {run} has no checkpoint yet")
    settings: dict[str, Any] = json.loads(known.read_text())
    return settings


def export_codec(run: Path) -> Path:
    """Write ``codec.safetensors`` and ``codec.json`` beside a codec run's checkpoint; returns the weights' path."""
    config = CodecConfig.from_dict(_run_settings(run)["settings"]["config"])
    codec = Codec(config)
    state = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    codec.load_state_dict(state["codec"] | state.get("averaged", {}))  # the mean of the last steps, where there is one
    save_codec(codec, run / CODEC)
    put_json(run / CODEC_CONFIG, config.to_dict(), indent=1)
    return run / CODEC


def find_codec(folder: Path) -> tuple[Codec, str]:
    """The codec of a bundle or of a codec run, as it will be served, and the SHA-256 of what decides its tokens.

    Meta's codec is named by its checkpoint's file, or by ``meta``, which downloads it. Raises DataError when there is
    no codec, BundleError when its weights do not fit, MetaCodecError when Meta's cannot be had.
    """
    if _is_meta(folder):
        codec = load_meta_codec(None if folder == META else folder)
        return codec, tokeniser_sha256(codec)
    if (folder / CONFIG).exists():
        described = read_config(folder)["codec"]
    else:
        if not (folder / CODEC_CONFIG).exists() or not (folder / CODEC).exists():
            export_codec(folder)
        described = json.loads((folder / CODEC_CONFIG).read_text())
    if described.get("kind", "bundled") != "bundled":
        raise DataError(f"{folder} does not hold its codec's weights")
    config = CodecConfig.from_dict({name: value for name, value in described.items() if name != "kind"})
    codec = load_codec(config, folder / CODEC)
    return codec, tokeniser_sha256(codec)


def replace_decoder(bundle: Path, codec_folder: Path, share: float = 1.0) -> None:
    """Give a bundle the decoder of a codec that makes the same tokens; its language model stays as it is.

    ``share`` of each weight is the new one's, and the rest the old one's where it has that weight, too (arXiv
    2109.01903: what a short training on other distances gained is kept, and less of what was known before is lost).
    Raises DataError when the tokens are others, or when the bundle does not hold its codec.
    """
    before, wanted = find_codec(bundle)
    codec, found = find_codec(codec_folder)
    if found != wanted:
        raise DataError(f"the codec in {codec_folder} makes other tokens than that of {bundle}")
    if codec.config.decoder == "harmonic":
        before = with_oscillators(before)
    own = dict(codec.decoder.named_parameters())
    with torch.no_grad():
        for name, parameter in before.decoder.named_parameters():
            if not name.startswith("reader."):
                own[name].lerp_(parameter, 1 - share)
    save_codec(codec, bundle / CODEC)
    (bundle / CODEC).chmod(0o644)
    written = read_config(bundle) | {"codec": codec.config.to_dict(), "codec_sha256": sha256_of(bundle / CODEC)}
    put_json(bundle / CONFIG, written, indent=2)


def export_bundle(
    run: Path, codec_folder: Path, tokens: TokenSet, out: Path, *, name: str, preset: str, licence: str = "",
    levels: tuple[int, ...] = (),
) -> Bundle:  # fmt: skip
    """Write a bundle from a language-model run, the codec whose tokens it learned, and those tokens (for the unigram
    and the levels). ``levels``: of a bundle with the same codec that the run began with; it heard more than the run.

    Raises DataError when the run was trained on the tokens of another codec.
    """
    known = _run_settings(run)
    settings = known["settings"]
    codec, sha256 = find_codec(codec_folder)
    if settings["tokens"]["codec_sha256"] != sha256:
        raise DataError(f"{run} was trained on the tokens of another codec than {codec_folder / CODEC}")
    decoder = HybridLM(DecoderConfig.from_dict(settings["config"]))
    state = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    decoder.load_state_dict(state["model"])
    decoder.unigram.copy_(tokens.unigram())
    made_by = {
        "steps": state["step"],
        "training": settings["training"],
        "tokens": settings["tokens"]["settings"],
        "machine": known["machine"],
    }
    bundle = Bundle(codec, decoder.eval(), name, preset, licence, made_by, levels=levels or tokens.levels())
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".export-", dir=out) as folder:  # what is there stays until the new one is whole
        made = Path(folder)
        save_bundle(bundle, made)
        if _is_meta(codec_folder):  # named by its hash, and not shipped: it has terms of its own
            (made / CODEC).unlink()
            found = {"codec": {"kind": "meta"}, "codec_sha256": sha256_of(_meta_file(codec_folder))}
        else:  # the very file, whatever wrote it: its hash is the bundle's
            shutil.copyfile(codec_folder / CODEC, made / CODEC)
            found = {"codec_sha256": sha256_of(made / CODEC)}
        put_json(made / CONFIG, read_config(made) | found, indent=2)
        for file in (
            CODEC,
            DECODER,
            CONFIG,
        ):  # a kill between two leaves files whose hashes do not fit: refused at load
            if (made / file).exists():
                (made / file).chmod(0o644)  # safetensors writes for the owner alone; a server runs as somebody else
                os.replace(made / file, out / file)
            else:
                (out / file).unlink(missing_ok=True)
    return bundle
