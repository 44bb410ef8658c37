"""Bundles: a folder of weights that belong together.

``config.json`` says what is inside, ``codec.safetensors`` and ``decoder.safetensors`` hold float16 weights, and
``MODEL_CARD.md`` tells where they come from. A language model belongs to the codec that it was trained on: the
config names that codec by the SHA-256 of its file, and loading refuses another one.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.codec.codec import Codec
from model.codec.config import CodecConfig, DecoderKind, EncoderKind
from model.constants import LATENT_DIM, MAX_CODEBOOKS, VOCABULARY
from model.files import put_json, whole_file
from model.lm.config import PRESETS, DecoderConfig
from model.lm.hybrid_lm import HybridLM
from model.lm.mel import LogMel

FORMAT = 1
CONFIG, CODEC, DECODER = "config.json", "codec.safetensors", "decoder.safetensors"
KEYS = {
    "format", "name", "preset", "codec", "codec_sha256", "decoder", "decoder_sha256", "licence", "made_by", "levels",
}  # fmt: skip


class BundleError(ValueError):
    """A folder is not a bundle that this version can serve."""


@dataclass
class Bundle:
    """A codec, a language model (its depth decoder is ``lm.fine``) and what is known of them."""

    codec: Codec
    lm: HybridLM
    name: str
    preset: str = "custom"
    licence: str = ""
    made_by: dict[str, Any] = field(default_factory=dict)  # training settings, for the record
    hashes: dict[str, str] = field(default_factory=dict)  # SHA-256 of the weight files
    folder: Path | None = None
    mel: LogMel = field(default_factory=LogMel)
    levels: tuple[int, ...] = ()  # of each coarse token, the loudest last (`model.training.levels`); () = unknown

    def __post_init__(self) -> None:
        # (L, V) bool, which tokens are of which level; None where there are fewer than two
        count = max(self.levels, default=0) + 1
        of = [[level == one for level in self.levels] for one in range(count)]
        self.level_of = torch.tensor(of) if count > 1 else None

    @property
    def device(self) -> torch.device:
        return self.lm.head.weight.device

    def to(self, device: str | torch.device) -> "Bundle":
        for module in (self.codec, self.lm, self.mel):
            module.to(device)
        self.level_of = None if self.level_of is None else self.level_of.to(device)
        return self


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _weights(module: torch.nn.Module, half: bool) -> dict[str, Tensor]:
    def stored(tensor: Tensor) -> Tensor:
        return tensor.half() if half and tensor.is_floating_point() else tensor

    return {name: stored(tensor.detach().cpu()).contiguous() for name, tensor in module.state_dict().items()}


def _load(module: torch.nn.Module, path: Path) -> None:
    try:
        weights = load_file(path)
        module.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in weights.items()})
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path.name} cannot be read: {error}") from error
    except RuntimeError as error:
        raise BundleError(f"{path.name} does not fit the bundle's config: {error}") from error


QUANTISER_STATISTICS = ("cluster_size", "embed_avg", "inited")  # for training only


def _parts_sha256(codec: Codec, parts: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(_weights(codec, half=True).items()):
        if name.startswith(parts) and not name.endswith(QUANTISER_STATISTICS):
            digest.update(name.encode())
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def tokeniser_sha256(codec: Codec) -> str:
    """SHA-256 of what decides a codec's tokens: the encoder and the codebooks, in float16 as they are stored.

    A decoder can be trained further without this changing, so tokens and language models stay valid.
    """
    return _parts_sha256(codec, ("encoder.", "quantizer."))


def decoder_sha256(codec: Codec) -> str:
    """SHA-256 of what decides how tokens sound: the decoder, in float16 as it is stored."""
    return _parts_sha256(codec, ("decoder.",))


def save_codec(codec: Codec, path: Path, half: bool = True) -> str:
    """Write a codec's weights; returns the file's SHA-256."""
    weights = _weights(codec, half)
    kept = {name: tensor for name, tensor in weights.items() if not name.endswith(QUANTISER_STATISTICS)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        save_file(kept, part)
    return sha256_of(path)


def load_codec(config: CodecConfig, path: Path) -> Codec:
    """A codec from its weights. Raises BundleError."""
    codec = Codec(config)
    try:
        weights = {name: tensor.float() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path.name} cannot be read: {error}") from error
    try:
        found = codec.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # shapes
        raise BundleError(f"{path.name} does not fit the codec's config: {error}") from error
    missing = [name for name in found.missing_keys if not name.endswith(QUANTISER_STATISTICS)]
    unexpected = found.unexpected_keys
    if missing or unexpected:
        raise BundleError(f"{path.name} does not fit the codec's config: {(missing + unexpected)[:3]}")
    return codec.eval()


def save_bundle(bundle: Bundle, folder: Path, half: bool = True) -> None:
    """Write a bundle; its card is written by whoever made it."""
    folder.mkdir(parents=True, exist_ok=True)
    codec_sha256 = save_codec(bundle.codec, folder / CODEC, half)
    with whole_file(folder / DECODER) as part:
        save_file(_weights(bundle.lm, half), part)
    config = {
        "format": FORMAT,
        "name": bundle.name,
        "preset": bundle.preset,
        "licence": bundle.licence,
        "codec": bundle.codec.config.to_dict(),
        "codec_sha256": codec_sha256,
        "decoder": bundle.lm.config.to_dict(),
        "decoder_sha256": sha256_of(folder / DECODER),
        "made_by": bundle.made_by,
    }
    if bundle.levels:
        config["levels"] = "".join(f"{level:x}" for level in bundle.levels)
    put_json(folder / CONFIG, config, indent=2)


def _levels(config: dict[str, Any]) -> tuple[int, ...]:
    """The level of each coarse token, which a config has as a hexadecimal digit each. Raises ValueError, TypeError."""
    levels = tuple(int(digit, 16) for digit in config.get("levels", ""))
    if levels and (len(levels) != VOCABULARY or set(levels) != set(range(max(levels) + 1))):
        raise ValueError(f"levels: {len(levels)} digits for {VOCABULARY} tokens, or a level without a token")
    return levels


def read_config(folder: Path) -> dict[str, Any]:
    """A bundle's config, checked. Raises BundleError."""
    path = folder / CONFIG
    try:
        config: Any = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise BundleError(f"no bundle in {folder}: {CONFIG} is missing") from error
    except (OSError, ValueError) as error:  # ValueError: no JSON, or no text
        raise BundleError(f"{CONFIG} in {folder} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise BundleError(f"{CONFIG} in {folder} holds no object")
    if config.get("format") != FORMAT:
        raise BundleError(f"bundle format {config.get('format')!r} is not {FORMAT}")
    unknown, missing = set(config) - KEYS, {"name", "codec", "codec_sha256", "decoder"} - set(config)
    if unknown or missing:
        raise BundleError(f"{CONFIG}: unknown keys {sorted(unknown)}, missing keys {sorted(missing)}")
    return dict(config)


def load_bundle(folder: Path, device: str = "cpu", codec_path: Path | None = None) -> Bundle:
    """Load a bundle; weights become float32.

    A bundle trained on Meta's codec does not carry it: its config says ``"codec": {"kind": "meta", ...}``, and
    ``codec_path`` is the checkpoint (None: the `encodec` package's download). Raises BundleError.
    """
    config = read_config(folder)
    hashes = {DECODER: sha256_of(folder / DECODER)} if (folder / DECODER).exists() else {}
    expected = config.get("decoder_sha256")  # bundles of the first two editions have none
    if expected is not None and hashes.get(DECODER, expected) != expected:
        raise BundleError(
            f"{DECODER} is damaged, or another bundle's: SHA-256 {hashes[DECODER][:12]}, expected {str(expected)[:12]}"
        )
    try:
        codec_config = dict(config["codec"])
        if codec_config.pop("kind", "bundled") == "meta":
            from model.codec.encodec_24khz import MetaCodecError, load_meta_codec

            try:
                codec = load_meta_codec(codec_path, expected_sha256=config["codec_sha256"])
            except MetaCodecError as error:
                raise BundleError(str(error)) from error
            hashes[CODEC] = config["codec_sha256"]
        else:
            path = codec_path or folder / CODEC
            if not path.exists():
                raise BundleError(f"no bundle in {folder}: {path.name} is missing")
            hashes[CODEC] = sha256_of(path)
            if hashes[CODEC] != config["codec_sha256"]:
                raise BundleError(
                    f"{path.name} is not the codec that this language model was trained on: "
                    f"SHA-256 {hashes[CODEC][:12]}, expected {config['codec_sha256'][:12]}"
                )
            codec = load_codec(CodecConfig.from_dict(codec_config), path)
        decoder = HybridLM(DecoderConfig.from_dict(config["decoder"]))
        levels = _levels(config)
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, BundleError) else BundleError(f"{CONFIG}: {error}") from error
    if decoder.config.codebooks < codec.config.codebooks:
        raise BundleError(f"{decoder.config.codebooks} codebooks in the decoder, {codec.config.codebooks} in the codec")
    _load(decoder, folder / DECODER)
    bundle = Bundle(
        codec.eval(), decoder.eval(), config["name"], config.get("preset", "custom"), config.get("licence", ""),
        config.get("made_by", {}), hashes, folder, levels=levels,
    )  # fmt: skip
    for module in (bundle.codec, bundle.lm):
        module.requires_grad_(False)
    return bundle.to(device)


def random_bundle(
    preset: str = "tiny", seed: int = 0, decoder: DecoderKind = "frame", encoder: EncoderKind = "seanet"
) -> Bundle:
    """A bundle of random weights, for tests: small, and loud enough to be told from silence."""
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    small = {"n_filters": 2, "lstm_layers": 1, "frame_dim": 16, "frame_blocks": 2, "pitch_dim": 16, "pitch_blocks": 2,
             "encoder_dim": 16, "encoder_blocks": 2}  # fmt: skip
    codec = Codec(CodecConfig.from_dict(small | {"decoder": decoder, "encoder": encoder}))
    model = HybridLM(PRESETS[preset])
    torch.set_rng_state(generator_state)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)  # so that logits differ enough for a test to see
    vectors = torch.randn(MAX_CODEBOOKS, VOCABULARY, LATENT_DIM, generator=torch.Generator().manual_seed(seed))
    model.fine.begin_with(vectors)
    bundle = Bundle(codec.eval(), model.eval(), f"random-{preset}", preset)
    for module in (codec, model):
        module.requires_grad_(False)
    return bundle
