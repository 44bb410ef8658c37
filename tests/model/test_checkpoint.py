"""Bundles: what is written is what is read, and what does not belong together is refused."""

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint import (
    CODEC,
    CONFIG,
    DECODER,
    Bundle,
    BundleError,
    load_bundle,
    random_bundle,
    read_config,
    save_bundle,
    sha256_of,
)
from model.codec.encodec_import import import_encodec
from model.lm.depth_decoder import frames_before


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    save_bundle(bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def outputs(bundle: Bundle, samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    codes = bundle.codec.encode(samples[None])
    hidden, frames = bundle.lm(codes[:, 0], bundle.mel(samples[None])), codes.transpose(1, 2)
    return codes, bundle.codec.decode(codes), bundle.lm.fine(hidden, frames, frames_before(frames))


def test_full_precision_round_trip_is_exact(bundle: Bundle, tmp_path: Path, speech_like: Tensor) -> None:
    save_bundle(bundle, tmp_path, half=False)
    again = load_bundle(tmp_path)
    for module, other in ((bundle.codec, again.codec), (bundle.lm, again.lm)):
        weights = other.state_dict()
        assert all(torch.equal(t, weights[n]) for n, t in module.state_dict().items() if not n.endswith("embed_avg"))
    for made, wanted in zip(outputs(again, speech_like), outputs(bundle, speech_like), strict=True):
        assert torch.equal(made, wanted)


def test_half_on_disk_float_in_memory(bundle: Bundle, folder: Path) -> None:
    on_disk = load_file(folder / DECODER) | load_file(folder / CODEC)
    assert {t.dtype for t in on_disk.values() if t.is_floating_point()} == {torch.float16}
    again = load_bundle(folder)
    for module, other in ((bundle.codec, again.codec), (bundle.lm, again.lm)):
        for name, parameter in module.named_parameters():
            loaded = other.get_parameter(name)
            assert loaded.dtype == torch.float32 and not loaded.requires_grad
            assert torch.equal(loaded, parameter.half().float())
    assert not again.codec.training and not again.lm.training


def test_rounding_twice_changes_nothing(folder: Path, tmp_path: Path) -> None:
    """So a codec that was rounded before its language model was trained is served as it was."""
    again = load_bundle(folder)
    save_bundle(again, tmp_path / "second")
    for name in (CODEC, DECODER):
        assert (tmp_path / "second" / name).read_bytes() == (folder / name).read_bytes()


def test_what_is_known_of_it_comes_back(bundle: Bundle, tmp_path: Path) -> None:
    named = Bundle(bundle.codec, bundle.lm, "a name", "tiny", "CC-BY-4.0", {"steps": 3})
    save_bundle(named, tmp_path)
    again = load_bundle(tmp_path)
    assert (again.name, again.preset, again.licence, again.made_by) == ("a name", "tiny", "CC-BY-4.0", {"steps": 3})
    assert again.lm.config == bundle.lm.config and again.codec.config == bundle.codec.config
    assert again.hashes == {name: sha256_of(tmp_path / name) for name in (CODEC, DECODER)}
    assert again.folder == tmp_path


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 10**6)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(b"abc" * 10**6).hexdigest()


def test_another_codec_is_refused(folder: Path, make_codec: Callable[..., Any]) -> None:
    from model.checkpoint import save_codec

    other = make_codec()
    other.decoder.head.bias += 0.1
    save_codec(other, folder / CODEC)
    with pytest.raises(BundleError, match="not the codec that this language model was trained on"):
        load_bundle(folder)


def test_the_codec_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    elsewhere = (folder / CODEC).rename(tmp_path / "codec-of-mine.safetensors")
    with pytest.raises(BundleError, match="missing"):
        load_bundle(folder)
    load_bundle(folder, codec_path=elsewhere)
    elsewhere.write_bytes(elsewhere.read_bytes() + b" ")
    with pytest.raises(BundleError, match="not the codec"):
        load_bundle(folder, codec_path=elsewhere)


@pytest.mark.parametrize("name", [CODEC, DECODER])
def test_flipped_bit(folder: Path, name: str) -> None:
    """In the weights themselves, where safetensors sees nothing wrong."""
    path = folder / name
    content = bytearray(path.read_bytes())
    content[-7] ^= 4
    path.write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} is .*SHA-256"):
        load_bundle(folder)


def test_a_bundle_without_the_decoders_hash(folder: Path) -> None:
    """As the first two editions were written."""
    edit(folder, decoder_sha256=None)
    assert DECODER in load_bundle(folder).hashes


@pytest.mark.parametrize("name", [CONFIG, CODEC, DECODER])
def test_missing_files(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=name):
        load_bundle(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle"):
        load_bundle(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2"),
        ({"colour": "red"}, "colour"),
        ({"name": None}, "name"),
        ({"codec_sha256": None}, "codec_sha256"),
        ({"codec": {"n_filters": 2, "depth": 1}}, "depth"),
        ({"decoder": {"dim": 32, "depth": 1}}, "depth"),
        ({"decoder": {"dim": 31}}, "31"),
        ({"decoder": {"dim": "wide"}}, CONFIG),
        ({"decoder": {"dim": 64}}, DECODER),
        ({"codec": {"n_filters": 4}}, CODEC),
        ({"codec": {}}, CODEC),
        ({"decoder": 7}, CONFIG),
        ({"levels": "01"}, "levels"),
        ({"levels": "0" * 1023 + "2"}, "levels"),
        ({"levels": "g" * 1024}, CONFIG),
        ({"levels": 7}, CONFIG),
        ({"codec": 7}, CONFIG),
    ],
    ids=str,
)
def test_configs_that_do_not_fit(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder, **changes)
    with pytest.raises(BundleError, match=message):
        load_bundle(folder)


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "\xff"])
def test_config_that_is_no_object(folder: Path, text: str) -> None:
    (folder / CONFIG).write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=CONFIG):
        load_bundle(folder)


@pytest.mark.parametrize("name", [CODEC, DECODER])
@pytest.mark.parametrize("how", ["cut", "noise", "empty"])
def test_broken_weights(folder: Path, name: str, how: str) -> None:
    path = folder / name
    content = {"cut": path.read_bytes()[:-100], "noise": b"\x93" * 500, "empty": b""}[how]
    path.write_bytes(content)
    hashes = {"codec_sha256": sha256_of(folder / CODEC), "decoder_sha256": sha256_of(folder / DECODER)}
    edit(folder, **hashes)  # a hash is not what catches it
    with pytest.raises(BundleError, match=name):
        load_bundle(folder)


@pytest.mark.parametrize("name", [CODEC, DECODER])
@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_weights_of_another_shape(folder: Path, name: str, change: str) -> None:
    weights = load_file(folder / name)
    if change == "missing":
        weights.popitem()
    else:
        weights["extra.weight"] = torch.zeros(1)
    save_file(weights, folder / name)
    edit(folder, codec_sha256=sha256_of(folder / CODEC), decoder_sha256=sha256_of(folder / DECODER))
    with pytest.raises(BundleError, match=name):
        load_bundle(folder)


def test_meta_codec_by_path(folder: Path, tmp_path: Path, speech_like: Tensor) -> None:
    encodec = import_encodec()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        reference = encodec.EncodecModel.encodec_model_24khz(pretrained=False)
    checkpoint = tmp_path / "meta.th"
    torch.save(reference.state_dict(), checkpoint)
    edit(folder, codec={"kind": "meta"}, codec_sha256=sha256_of(checkpoint))
    (folder / CODEC).unlink()
    loaded = load_bundle(folder, codec_path=checkpoint)
    assert loaded.hashes[CODEC] == sha256_of(checkpoint)
    assert loaded.codec.encode(speech_like[None, :6400]).shape == (1, 8, 20)
    edit(folder, codec_sha256="0" * 64)
    with pytest.raises(BundleError, match="not the expected checkpoint"):
        load_bundle(folder, codec_path=checkpoint)


def test_random_bundle_is_repeatable_and_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    one, two, other = random_bundle(), random_bundle(), random_bundle(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.lm.head.weight, two.lm.head.weight)
    assert not torch.equal(one.lm.head.weight, other.lm.head.weight)


def test_read_config_alone(folder: Path) -> None:
    assert read_config(folder)["preset"] == "tiny"
