"""Images from PNG and JPEG files, in the form that a network takes."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ima_dist.config.errors import ConfigError, first_line
from ima_dist.data.published import Unfit

# Pillow's modes with at most 8 bits per channel: the others would lose their range when converted.
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_ENDINGS = (".png", ".jpg", ".jpeg")
# Number of channels -> Pillow's mode.
COLOURS = {1: "L", 3: "RGB"}


def pictures_below(folder: Path) -> list[Path]:
    """The PNG and JPEG files in a folder and its subfolders, sorted; hidden ones are left out.

    Raises ConfigError if there are none, or if one is an image of another kind.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.is_file() and is_picture(path):
            found.append(path)
    if not found:
        raise ConfigError(f"{folder} holds no PNG or JPEG file: check the path.")
    return found


def is_picture(path: Path) -> bool:
    """Whether a file is an image, by its content or its name's ending. Raises Unfit for an image of another kind."""
    if path.suffix.lower() in _ENDINGS or _begins_like_one(path):
        return True
    try:
        with Image.open(path) as image:
            kind = image.format
    except Exception:
        return False
    raise Unfit(f"{path} is a {kind} file: convert it to PNG, or move it out of the folder")


def _begins_like_one(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_PNG)).startswith((_PNG, _JPEG))


def read_picture(path: Path, shape: tuple[int, int, int]) -> tuple[np.ndarray, bool]:
    """The image as uint8 of ``shape`` (channels, height, width), and whether it is transparent somewhere.

    It is turned as its EXIF entry says, laid on black if it is transparent, converted to grey (1 channel) or RGB (3),
    and resized with Pillow's bilinear filter. Raises ConfigError if it cannot be read, or has more than 8 bits.
    """
    channels, height, width = shape
    try:
        with Image.open(path, formats=["PNG", "JPEG"]) as image:
            mode = image.mode
            if mode in _MODES:
                opaque, composed = _opaque(ImageOps.exif_transpose(image))
                pixels = opaque.convert(COLOURS[channels]).resize((width, height), Image.Resampling.BILINEAR)
                return np.asarray(pixels).reshape(height, width, channels).transpose(2, 0, 1), composed
    except Exception as e:  # the parser may raise anything for a damaged file
        raise ConfigError(f"{path} cannot be read as a PNG or JPEG file ({first_line(e)})") from e
    raise Unfit(f"{path} has more than 8 bits per channel (mode {mode}): convert it to an 8-bit image")


def _opaque(image: Image.Image) -> tuple[Image.Image, bool]:
    """The image laid on black, and whether any of it is transparent; else as it was."""
    if not image.has_transparency_data:
        return image, False
    layered = image.convert("RGBA")
    if layered.getchannel("A").getextrema()[0] == 255:
        return image, False
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, layered), True
