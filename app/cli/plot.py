"""`--plot`: a picture of what was scored or made, drawn here, also when a server computed it."""

import base64
import io
from pathlib import Path
from typing import Any

from app.cli.output import check_output, whole_file
from app.errors import UserError
from app.scores.reports import Scored, can_draw, write_png
from model.constants import FRAME_RATE_HZ, HOP_SAMPLES


def check_plot(out: Path) -> None:
    """Raises UserError when no picture can be drawn, or not to this file."""
    if not can_draw():
        raise UserError("--plot needs matplotlib: pip install matplotlib")
    if out.suffix.lower() != ".png":
        raise UserError(f"{out}: a picture's name must end in .png")
    check_output(out)


def _written(out: Path, content: bytes) -> None:
    with whole_file(out) as part:
        part.write_bytes(content)


def plot_score(out: Path, clip: Path, scored: Scored) -> None:
    """The picture of the only clip; none where it could not be scored."""
    from app.audio.decode import decode
    from app.audio.picture import Sketch
    from app.corpora.scoring import MAX_SECONDS

    if not scored.good:
        return
    with clip.open("rb") as file:
        sketch = Sketch.of(decode(file, MAX_SECONDS).samples)
    _written(out, write_png(Scored(scored.model, scored.results, scored.context_frames, sketch)))


def plot_continuation(
    out: Path, clip: Path, part: tuple[float, float | None], body: dict[str, Any], prompt_logprobs: list[float] | None
) -> None:
    """The picture of a prompt, the part of a clip, and the first choice of what was answered."""
    import numpy as np
    import soundfile

    from app.audio.decode import decode
    from app.audio.picture import PAST, Sketch, Strip, picture
    from app.corpora.scoring import MAX_SECONDS

    with clip.open("rb") as file:
        prompt = decode(file, MAX_SECONDS, *part).samples[: body["prompt"]["tokens"] * HOP_SAMPLES]
    choice = body["choices"][0]
    answered, _ = soundfile.read(io.BytesIO(base64.b64decode(choice["audio"]["data"])), dtype="float32")
    made = answered[-len(choice["tokens"]) * HOP_SAMPLES :]  # the prompt may stand before it
    joint = len(prompt) / HOP_SAMPLES / FRAME_RATE_HZ
    strips = [Strip("continuation", np.array(choice["logprobs"]), joint)]
    if prompt_logprobs is not None:
        strips.insert(0, Strip("prompt", np.array(prompt_logprobs), colour=PAST))
    title = f"{clip.name} and {len(choice['tokens']) / FRAME_RATE_HZ:.2f} s of continuation, seed {body['seed']}"
    _written(out, picture(title, Sketch.of(np.concatenate([prompt, made])), strips, joint=joint))
