"""Meta's `encodec_24khz` as a codec of this project: the paper's exact tokens, for whoever has the checkpoint.

The checkpoint does not ship with the project. It comes from the `encodec` package's own download, or from a file; its
weight norm is folded into plain weights, and of its 32 codebooks the first 8 are kept.
"""

import hashlib
import re
import warnings
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor

from model.codec.codec import Codec
from model.codec.config import CodecConfig
from model.codec.encodec_import import import_encodec

FILE_NAME = "encodec_24khz-d7cc33bc.th"  # the package's: its name ends in the beginning of its SHA-256
SHA256_PREFIX = "d7cc33bc"
_CODEBOOK = re.compile(r"quantizer\.vq\.layers\.(\d+)\.")


class MetaCodecError(ValueError):
    """Meta's checkpoint cannot be had: no file, no network, another file than expected, or other weights in it."""


def fold_weight_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with each pair (weight_g, weight_v) replaced by the weight g v / |v| (arXiv 1602.07868)."""
    folded: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(".weight_v"):
            stem = name.removesuffix("_v")
            if stem + "_g" not in state:
                raise MetaCodecError(f"{name} has no {stem}_g")
            folded[stem] = torch._weight_norm(tensor, state[stem + "_g"], 0)  # over all dimensions but the first
        elif not name.endswith(".weight_g"):
            folded[name] = tensor
    return folded


def _verify(path: Path, expected: str) -> None:
    """Raises MetaCodecError unless the file's SHA-256 begins with ``expected``."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise MetaCodecError(f"Meta's codec cannot be read from {path}: {error.strerror}") from error
    if not expected or not digest.hexdigest().startswith(expected.lower()):
        raise MetaCodecError(
            f"{path.name} is not the expected checkpoint: its SHA-256 begins with {digest.hexdigest()[:12]}, "
            f"expected {expected[:12]!r}"
        )


def _downloaded(expected: str) -> dict[str, Tensor]:
    """The weights by the package's own loader, which keeps the file in torch's hub folder."""
    encodec = import_encodec()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the package uses torch's older weight norm
            model = encodec.EncodecModel.encodec_model_24khz(pretrained=True)
    except (URLError, OSError, RuntimeError) as error:  # RuntimeError: the download's own checksum
        raise MetaCodecError(f"Meta's codec cannot be downloaded ({error}); give the path of {FILE_NAME}") from error
    _verify(Path(torch.hub.get_dir()) / "checkpoints" / FILE_NAME, expected)
    state: dict[str, Tensor] = model.state_dict()
    return state


def load_meta_codec(path: Path | None, expected_sha256: str | None = None) -> Codec:
    """Meta's codec, in evaluation mode, on the CPU.

    Args:
        path: the checkpoint, a state dict as `encodec_24khz-d7cc33bc.th`; None: the `encodec` package downloads it.
        expected_sha256: what the file's SHA-256 must begin with; by default that of Meta's file.

    Raises:
        MetaCodecError: the file is missing, another one, or holds other weights.
    """
    expected = SHA256_PREFIX if expected_sha256 is None else expected_sha256
    if path is None:
        state = _downloaded(expected)
    else:
        _verify(path, expected)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a file that is no pickle can make the unpickler raise anything
            raise MetaCodecError(f"{path.name} cannot be read: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise MetaCodecError(f"{path and path.name} holds no state dict")
    codec = Codec(CodecConfig.meta())
    kept = {}
    for name, tensor in fold_weight_norm(state).items():
        book = _CODEBOOK.match(name)
        if book is None or int(book[1]) < codec.config.codebooks:
            kept[name] = tensor.float()
    try:
        codec.load_state_dict(kept)
    except RuntimeError as error:
        raise MetaCodecError(f"the weights do not fit encodec_24khz: {error}") from error
    return codec.eval().requires_grad_(False)
