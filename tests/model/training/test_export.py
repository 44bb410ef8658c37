"""From runs to weights: the codec that made the tokens is the codec that is served."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import (
    Bundle,
    BundleError,
    load_bundle,
    random_bundle,
    save_bundle,
    save_codec,
    sha256_of,
    tokeniser_sha256,
)
from model.codec import encodec_24khz
from model.codec.encodec_import import import_encodec
from model.lm.config import PRESETS
from model.lm.hybrid_lm import HybridLM
from model.training.corpus import DataError
from model.training.export import export_bundle, export_codec, find_codec, replace_decoder
from model.training.pitch_targets import with_oscillators


class Counted:
    """The part of a token set that an export needs."""

    def unigram(self) -> torch.Tensor:
        return torch.linspace(-8.0, -6.0, 1024).double().log_softmax(-1)

    def levels(self) -> tuple[int, ...]:
        return tuple(token % 8 for token in range(1024))


@pytest.fixture
def codec_run(tmp_path: Path, bundle: Bundle) -> Path:
    """A codec run's folder, as training leaves it."""
    run = tmp_path / "codec"
    run.mkdir()
    (run / "settings.json").write_text(json.dumps({"settings": {"config": bundle.codec.config.to_dict()}}))
    torch.save({"codec": bundle.codec.state_dict(), "step": 2}, run / "checkpoint.pt")
    return run


def language_run(folder: Path, codec_sha256: str) -> Path:
    """A language-model run's folder, as training leaves it."""
    folder.mkdir()
    tokens = {"codec_sha256": codec_sha256, "settings": {"seed": 0}}
    settings = {"config": asdict(PRESETS["tiny"]), "training": {"steps": 2}, "tokens": tokens}
    (folder / "settings.json").write_text(json.dumps({"settings": settings, "machine": {"cores": 2}}))
    model = HybridLM(PRESETS["tiny"])
    torch.save({"model": model.state_dict(), "optimizer": {}, "step": 2}, folder / "checkpoint.pt")
    return folder


def exported(run: Path, codec: Path, out: Path) -> Bundle:
    return export_bundle(run, codec, Counted(), out, name="made", preset="tiny", licence="CC0-1.0")  # type: ignore[arg-type]


def test_the_served_codec_makes_the_tokens_that_were_trained_on(
    codec_run: Path, tmp_path: Path, speech_like: torch.Tensor
) -> None:
    codec, digest = find_codec(codec_run)
    assert (codec_run / "codec.safetensors").exists()
    run = language_run(tmp_path / "lm", digest)
    exported(run, codec_run, tmp_path / "out")
    served = load_bundle(tmp_path / "out")
    assert torch.equal(served.codec.encode(speech_like[None]), codec.encode(speech_like[None]))
    assert tokeniser_sha256(served.codec) == digest
    assert (served.name, served.preset, served.licence) == ("made", "tiny", "CC0-1.0")
    assert served.made_by["steps"] == 2
    assert torch.allclose(served.lm.unigram.double(), Counted().unigram(), atol=1e-2)  # float16 on disk
    assert served.levels == Counted().levels() and served.level_of is not None and served.level_of[3, 11]


def test_files_can_be_read_by_others(codec_run: Path, tmp_path: Path) -> None:
    _, digest = find_codec(codec_run)
    exported(language_run(tmp_path / "lm", digest), codec_run, tmp_path / "out")
    for name in ("config.json", "codec.safetensors", "decoder.safetensors"):
        assert (tmp_path / "out" / name).stat().st_mode & 0o044 == 0o044, name


def test_tokens_of_another_codec_are_refused(codec_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="another codec"):
        exported(language_run(tmp_path / "lm", "0" * 64), codec_run, tmp_path / "out")


def test_codec_of_a_bundle(tmp_path: Path, bundle: Bundle) -> None:
    save_bundle(bundle, tmp_path / "bundle")
    codec, digest = find_codec(tmp_path / "bundle")
    assert digest == tokeniser_sha256(codec) == tokeniser_sha256(bundle.codec)


@pytest.mark.parametrize("missing", ["settings.json", "checkpoint.pt"])
def test_half_a_run_is_refused(codec_run: Path, missing: str) -> None:
    (codec_run / missing).unlink()
    with pytest.raises(DataError, match=r"no training run|no checkpoint"):
        export_codec(codec_run)


def test_an_export_that_fails_leaves_the_bundle_that_was_there(
    codec_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, digest = find_codec(codec_run)
    run, out = language_run(tmp_path / "lm", digest), tmp_path / "out"
    exported(run, codec_run, out)
    files = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(OSError, match="No space"):
        exported(language_run(tmp_path / "other", digest), codec_run, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files


@pytest.fixture
def meta_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the names and shapes of Meta's checkpoint, and random values."""
    torch.manual_seed(0)
    path = tmp_path / "encodec_24khz.th"
    model: Any = import_encodec().EncodecModel.encodec_model_24khz(pretrained=False)
    torch.save(model.state_dict(), path)
    monkeypatch.setattr(encodec_24khz, "SHA256_PREFIX", sha256_of(path)[:8])
    return path


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_bundle_on_metas_codec_names_it_and_does_not_carry_it(meta_file: Path, tmp_path: Path) -> None:
    codec, digest = find_codec(meta_file)
    out = tmp_path / "out"
    exported(language_run(tmp_path / "lm", digest), meta_file, out)
    config = json.loads((out / "config.json").read_text())
    assert config["codec"] == {"kind": "meta"}
    assert config["codec_sha256"] == sha256_of(meta_file)
    assert not (out / "codec.safetensors").exists()
    served = load_bundle(out, codec_path=meta_file)
    assert tokeniser_sha256(served.codec) == digest == tokeniser_sha256(codec)
    other = tmp_path / "other.th"
    other.write_bytes(meta_file.read_bytes() + b" ")
    with pytest.raises(BundleError, match="not the expected checkpoint"):
        load_bundle(out, codec_path=other)


class TestReplaceDecoder:
    def test_tokens_and_language_model_stay(self, bundle: Bundle, tmp_path: Path, speech_like: torch.Tensor) -> None:
        save_bundle(bundle, tmp_path / "bundle")
        before = load_bundle(tmp_path / "bundle")
        harmonic = with_oscillators(before.codec)
        (tmp_path / "codec").mkdir()
        save_codec(harmonic, tmp_path / "codec" / "codec.safetensors")
        (tmp_path / "codec" / "codec.json").write_text(json.dumps(harmonic.config.to_dict()))
        replace_decoder(tmp_path / "bundle", tmp_path / "codec")
        after = load_bundle(tmp_path / "bundle")
        assert after.codec.config.decoder == "harmonic"
        assert tokeniser_sha256(after.codec) == tokeniser_sha256(before.codec)
        assert after.hashes["decoder.safetensors"] == before.hashes["decoder.safetensors"]
        assert (after.name, after.preset, after.made_by) == (before.name, before.preset, before.made_by)
        codes = before.codec.encode(speech_like[None])
        assert torch.equal(after.codec.encode(speech_like[None]), codes)
        assert not torch.equal(after.codec.decode(codes), before.codec.decode(codes))
        assert (tmp_path / "bundle" / "codec.safetensors").stat().st_mode & 0o044 == 0o044

    @pytest.mark.parametrize("share", [0.0, 0.75, 1.0])
    def test_weights_lie_between_the_old_and_the_new(self, bundle: Bundle, tmp_path: Path, share: float) -> None:
        save_bundle(bundle, tmp_path / "bundle")
        old = load_bundle(tmp_path / "bundle").codec
        new = with_oscillators(old)
        with torch.no_grad():
            new.decoder.frame.head.weight += 1.0  # type: ignore[union-attr, operator]
        (tmp_path / "codec").mkdir()
        save_codec(new, tmp_path / "codec" / "codec.safetensors")
        (tmp_path / "codec" / "codec.json").write_text(json.dumps(new.config.to_dict()))
        replace_decoder(tmp_path / "bundle", tmp_path / "codec", share)
        made = load_bundle(tmp_path / "bundle").codec.state_dict()
        was = old.state_dict()["decoder.head.weight"]
        torch.testing.assert_close(made["decoder.frame.head.weight"], was + share, atol=2e-3, rtol=0)
        wanted = new.state_dict()["decoder.reader.bins.weight"]  # which the old one does not have
        torch.testing.assert_close(made["decoder.reader.bins.weight"], wanted, atol=1e-3, rtol=0)

    def test_other_tokens_are_refused(self, bundle: Bundle, tmp_path: Path) -> None:
        for name, one in (("one", bundle), ("other", random_bundle(seed=5))):
            save_bundle(one, tmp_path / name)
        kept = (tmp_path / "one" / "codec.safetensors").read_bytes()
        with pytest.raises(DataError, match="other tokens"):
            replace_decoder(tmp_path / "one", tmp_path / "other")
        assert (tmp_path / "one" / "codec.safetensors").read_bytes() == kept


def test_a_config_that_knows_nothing_of_oscillators(bundle: Bundle, tmp_path: Path) -> None:
    """A bundle that was written before there were any."""
    save_bundle(bundle, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("pitch_dim", "pitch_blocks"):
        del config["codec"][name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_bundle(tmp_path).codec.config.decoder == "frame"


def test_random_bundles_differ_in_their_tokens() -> None:
    assert tokeniser_sha256(random_bundle(seed=0).codec) != tokeniser_sha256(random_bundle(seed=1).codec)
