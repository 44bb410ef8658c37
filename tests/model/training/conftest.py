"""A corpus that is small enough to train on in a test."""

import pytest
import soundfile
from torch import Tensor

from model.constants import SAMPLE_RATE_HZ
from model.training.corpus import Corpus, build_corpus, is_valid_group


@pytest.fixture(scope="session")
def corpus(speech_like: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """26 speakers of 1.5 s each, two of them for validation. Nobody may change it."""
    folder = tmp_path_factory.mktemp("audio")
    names = [f"speaker{number}" for number in range(500)]
    valid = [name for name in names if is_valid_group(name, 0.03)][:2]
    train = [name for name in names if not is_valid_group(name, 0.03)][:24]
    for number, name in enumerate(train + valid):
        first = 2000 * number
        sound = speech_like[first : first + 36_000] * (0.4 + 0.02 * number)
        (folder / name).mkdir()
        soundfile.write(folder / name / f"{name}.wav", sound.numpy(), SAMPLE_RATE_HZ)
    return build_corpus([folder], tmp_path_factory.mktemp("corpus"))
