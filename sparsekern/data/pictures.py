"""Decoding of image files, by Pillow."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import IO, Any


def pillow() -> ModuleType:
    """PIL.Image. Raises ImportError, naming the extra to install."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "image files are read by Pillow, which is not installed: pip install 'sparsekern[vision]'"
        ) from error
    return Image


def read_rgb(file: Path | IO[bytes]) -> Any:
    """The picture (a PIL.Image) in three channels, whatever it has. Raises ValueError where it cannot be read."""
    try:
        with pillow().open(file) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, pillow().DecompressionBombError) as error:
        raise ValueError(f"cannot be read as an image: {error}") from error
