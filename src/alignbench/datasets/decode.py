"""Image files as square tensors and captions as text: one reader for folders, shards and tables, and one line for whatever is wrong."""

import os
import warnings
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from alignbench.config import ConfigError
from alignbench.datasets.table import LONGEST_CELL, short


def inside(folder: Path, name: str, where: str) -> Path:
    """The file `name` in `folder`. Raises ConfigError, which begins with `where`, for a name or a link that leads out of it."""
    if "\0" in name:
        raise ConfigError(f"{where}: the name {name!r} holds a NUL byte; is the file damaged?")
    path = folder / name
    if os.path.isabs(name) or ".." in Path(name).parts or not os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep):
        raise ConfigError(f"{where}: {name!r} leads out of {folder}; images lie in that folder, named from there")
    if not os.path.isfile(path):
        raise ConfigError(f"{where}: there is no image {name!r} in {folder}")
    return path


def square(source: Path | bytes, size: int, where: str) -> Tensor:
    """[3,size,size] in [0,1]: turned as its EXIF says, cropped to a square around its centre, resized. A file, or what one holds.

    Raises ConfigError, which begins with `where`, for what is no whole image.
    """
    import numpy
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
                pixels = numpy.array(ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (size, size)))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        most = Image.MAX_IMAGE_PIXELS or 0
        raise ConfigError(f"{where}: more than {most:,} pixels, which may be a decompression bomb; make it smaller") from None
    except UnidentifiedImageError:
        raise ConfigError(f"{where}: not an image that is read; PNG, JPEG and WebP are") from None
    except Exception as error:  # whatever a decoder raises on a damaged file
        raise ConfigError(f"{where}: damaged or cut short ({str(error).splitlines()[0] if str(error) else type(error).__name__})") from None
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def caption(data: bytes, where: str) -> str:
    """Text without the white space around it. Raises ConfigError, which begins with `where`, for what is none."""
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: bytes that are not UTF-8; save the caption as UTF-8") from None
    return said(text, where)


def said(text: object, where: str) -> str:
    """A caption that is there and can be read; else ConfigError, which begins with `where`."""
    if not isinstance(text, str):
        raise ConfigError(f"{where}: a caption is text, not {short(text)}")
    if not text.strip():
        raise ConfigError(f"{where}: the caption is blank; give the image one")
    if "\0" in text:
        raise ConfigError(f"{where}: the caption holds a NUL byte; is the file damaged?")
    if len(text) > LONGEST_CELL:
        raise ConfigError(f"{where}: a caption of {len(text):,} characters; at most {LONGEST_CELL:,} are read")
    return text
