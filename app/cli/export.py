"""`whisper-gpt export`: parts of a bundle as ONNX."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from app.cli.interrupt import handled, stop_at_once
from app.cli.options import console, errors
from app.cli.output import check_folder
from app.errors import UserError

NEEDED = ("onnx", "onnxscript")


def export_command(
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for encoder.onnx and lm_step.onnx")],
    bundle: Annotated[Path | None, typer.Option(help="folder of weights; default: as `config show` says")] = None,
) -> None:
    """Write the encoder and the language model's step as ONNX.

    Needs the extra onnx. docs/onnx.md tells what goes in and out.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f"export needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    check_folder(out)
    with handled(stop_at_once):
        from app.cli.local import load
        from model.inference.onnx_export import export
    loaded, _ = load(bundle, "cpu", None)
    with errors.status("exporting"):
        written = export(loaded, out)
    for path in written:
        console.print(f"{path}: {path.stat().st_size / 1e6:.1f} MB", highlight=False, markup=False, soft_wrap=True)
