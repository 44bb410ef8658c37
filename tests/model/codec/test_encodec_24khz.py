"""Meta's checkpoint, equal to the `encodec` package. The file here has its names and shapes, and random values."""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.codec.encodec_24khz import MetaCodecError, fold_weight_norm, load_meta_codec
from model.codec.encodec_import import import_encodec


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def reference() -> Any:
    """The package's own model with random weights: louder than PyTorch's init, so that codes differ over time."""
    encodec = import_encodec()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(0)
        model = encodec.EncodecModel.encodec_model_24khz(pretrained=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight_g"):
                parameter *= torch.empty_like(parameter).uniform_(1.0, 2.5)  # so that folding without g shows
        for layer in model.quantizer.vq.layers:
            layer._codebook.embed.normal_()
            layer._codebook.inited.fill_(True)
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("meta") / "encodec_24khz-d7cc33bc.th"
    torch.save(reference.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def signal() -> Tensor:
    return torch.randn(2, 320 * 20, generator=torch.Generator().manual_seed(1)) * 0.3


@pytest.mark.parametrize("codebooks", [1, 2, 4, 8])
def test_equals_the_package(reference: Any, checkpoint: Path, signal: Tensor, codebooks: int) -> None:
    codec = load_meta_codec(checkpoint, sha256(checkpoint))
    with torch.no_grad():
        reference.set_target_bandwidth(6.0)  # 8 codebooks
        codes = reference.encode(signal[:, None])[0][0]
        made = codec.encode(signal)
        assert made.shape == (2, 8, 20)
        assert torch.equal(made, codes)
        assert len(made[:, 0].unique()) > 3  # or equality would say little
        wanted = reference.decode([(codes[:, :codebooks], None)])[:, 0]
        got = codec.decode(made[:, :codebooks])
    assert wanted.std() > 1e-3
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


def test_folding_is_torchs_weight_norm() -> None:
    plain = torch.nn.ConvTranspose1d(3, 5, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        normed = torch.nn.utils.weight_norm(torch.nn.ConvTranspose1d(3, 5, 4))
    with torch.no_grad():
        normed.get_parameter("weight_g").mul_(3.0)
    plain.load_state_dict({n.removeprefix("x."): t for n, t in fold_weight_norm(
        {f"x.{name}": tensor for name, tensor in normed.state_dict().items()}
    ).items()})  # fmt: skip
    x = torch.randn(1, 3, 9)
    torch.testing.assert_close(plain(x), normed(x), rtol=0, atol=1e-6)


def test_meta_file_is_expected_by_default(checkpoint: Path) -> None:
    with pytest.raises(MetaCodecError, match="not the expected checkpoint"):
        load_meta_codec(checkpoint)


def test_another_hash_is_refused(checkpoint: Path) -> None:
    right = sha256(checkpoint)
    load_meta_codec(checkpoint, right[:8])  # the beginning is enough, as in the package
    with pytest.raises(MetaCodecError, match="not the expected checkpoint"):
        load_meta_codec(checkpoint, ("1" if right[0] == "0" else "0") + right[1:])


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MetaCodecError, match="cannot be read"):
        load_meta_codec(tmp_path / "nothing.th")


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "noise.th"
    path.write_bytes(b"RIFF and so on")
    with pytest.raises(MetaCodecError, match="cannot be read"):
        load_meta_codec(path, sha256(path))


@pytest.mark.parametrize("change", ["missing", "list", "shape"])
def test_other_weights_are_refused(reference: Any, tmp_path: Path, change: str) -> None:
    state: Any = dict(reference.state_dict())
    if change == "missing":
        del state["decoder.model.0.conv.conv.bias"]
    elif change == "shape":
        state["decoder.model.0.conv.conv.bias"] = torch.zeros(3)
    else:
        state = [torch.zeros(2)]
    path = tmp_path / "other.th"
    torch.save(state, path)
    with pytest.raises(MetaCodecError):
        load_meta_codec(path, sha256(path))
