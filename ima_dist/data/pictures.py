"""Images from files, in the form that a network takes: one reader for published data, own data and prediction."""

import importlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from ima_dist.config.errors import ConfigError, first_line, printable
from ima_dist.data.published import Unfit

Resize = Literal["fit", "crop", "pad"]
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
_JPEG = b"\xff\xd8\xff"
_BEGINNINGS = (b"\x89PNG\r\n\x1a\n", _JPEG, b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")
_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
# Pillow's modes with at most 8 bits per channel, and with 16.
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N")
_GREY = ("1", "L", "LA", "La", *_DEEP)
DEEPEST = 65535
# Number of channels -> Pillow's mode.
COLOURS = {1: "L", 3: "RGB"}
_TURNED = 5  # EXIF orientations from here on swap height and width


class Look(NamedTuple):
    """What an image's header says. height, width: as it is shown. deep: 16 bits, which are read as such. alpha: it has
    a transparent colour or an alpha channel. cut: it is read with 8 bits although it has 16 (colours). pages: it has
    several, of which the first is read."""

    height: int
    width: int
    grey: bool
    deep: bool
    alpha: bool
    cut: bool
    pages: bool


# Many of them, as an array.
LOOK = np.dtype([(name, np.int32 if kind is int else np.bool_) for name, kind in Look.__annotations__.items()])


@dataclass
class Found:
    """files: images, sorted by name. left_out: files that are none. loops: links to a directory that holds them."""

    files: list[Path] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)
    loops: list[Path] = field(default_factory=list)


def pictures_in(
    folder: Path, below: bool = True, root: Path | None = None, wanted: Callable[[Path], bool] | None = None
) -> Found:
    """The images in a folder and, with ``below``, in its subfolders. Hidden files and folders are passed over.

    root: a folder above it, to which no link is followed either. wanted: other files than those of ``is_picture``.
    Raises ConfigError if a folder cannot be read, or holds an image of a kind that we cannot read.
    """
    found = Found()
    for path in sorted(_files(folder, below, () if root is None else (os.path.realpath(root),), found.loops)):
        (found.files if (wanted or is_picture)(path) else found.left_out).append(path)
    return found


def _files(folder: Path, below: bool, above: tuple[str, ...], loops: list[Path]) -> Iterator[Path]:
    here = (*above, os.path.realpath(folder))
    try:
        entries = list(os.scandir(folder))
    except OSError as e:
        raise ConfigError(f"{folder} cannot be read ({first_line(e)})") from e
    for entry in entries:
        path = Path(entry.path)
        # macOS puts hidden files beside the images of an archive, or into a folder of this name.
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if not entry.is_dir():
            yield path
        elif not below:
            continue
        elif os.path.realpath(path) in here:
            loops.append(path)
        else:
            yield from _files(path, below, here, loops)


def pictures_below(folder: Path) -> list[Path]:
    """The images in a folder and its subfolders, sorted; hidden ones are left out.

    Raises ConfigError if there are none, or if one is of a kind that we cannot read.
    """
    found = pictures_in(folder).files
    if not found:
        raise ConfigError(f"{folder} holds no image ({', '.join(FORMATS)}): check the path.")
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
    raise Unfit(f"{printable(str(path))} is a {kind} file: convert it to PNG, or move it out of the folder")


def _begins_like_one(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return False  # a link to nothing, or a pipe's end
    return head.startswith(_BEGINNINGS) or (head[:4], head[8:]) == (b"RIFF", b"WEBP")


def look(content: Path | bytes, name: str) -> Look:
    """What the header of an image says. Raises ConfigError, which names it, if it is none, or of a kind that we
    cannot read."""
    try:
        with _opened(content) as image:
            width, height = image.size
            if image.getexif().get(0x0112, 1) >= _TURNED:
                width, height = height, width
            deep = _is_deep(image)
            mode, colours = image.mode, image.mode in ("RGB", "RGBA")
            seen = Look(
                height,
                width,
                mode in _GREY or (mode == "I" and deep),
                deep,
                image.has_transparency_data,
                colours and ";16" in str(getattr(image, "tile", None)),
                getattr(image, "is_animated", False),
            )
    except Exception as e:
        raise _unreadable(content, name, e) from e
    if not deep and mode not in _MODES:
        raise Unfit(f"{name} has values that are no grey levels or colours of 8 or 16 bits (mode {mode}): convert it")
    return seen


def _unreadable(content: Path | bytes, name: str, error: Exception) -> ConfigError:
    if isinstance(error, ConfigError):
        return error
    head = b""
    try:
        head = content[:64] if isinstance(content, bytes) else _head(content)
    except OSError as e:
        return ConfigError(f"{name} cannot be read ({first_line(e)})")
    if not head:
        return ConfigError(f"{name} is empty")
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return ConfigError(f"{name} is a text file, not the image that its name promises")
    return ConfigError(f"{name} cannot be read as an image, it may be truncated or damaged ({first_line(error)})")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _opened(content: Path | bytes) -> Image.Image:
    return Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=FORMATS)


def _is_deep(image: Image.Image) -> bool:
    # Older versions of Pillow read PNG files of 16 bits as 32-bit integers.
    return image.mode in _DEEP or (image.mode == "I" and image.format == "PNG")


def decode(
    content: Path | bytes,
    name: str,
    shape: tuple[int, int, int],
    resize: Resize = "fit",
    window: tuple[float, ...] | None = None,
) -> tuple[np.ndarray, bool]:
    """The image as an array of ``shape`` (channels, height, width), and whether it is transparent somewhere.

    It is turned as its EXIF entry says, laid on black if it is transparent, converted to grey (1 channel) or RGB (3),
    and resized with Pillow's bilinear filter. 8-bit images become uint8, those of 16 bits float32 from 0 to 1, or
    with a ``window`` (low, high) float32 in their own units, cut to it.
    Raises ConfigError if it cannot be read, or if a window is given for 8 bits.
    """
    try:
        content = content if isinstance(content, bytes) else content.read_bytes()
        colours = None if window else _jpeg(content)
        if colours is not None:
            if colours.shape == shape:
                return colours, False
            image = Image.fromarray(
                colours[0] if len(colours) == 1 else np.ascontiguousarray(colours.transpose(1, 2, 0))
            )
            return _pixels(image, shape, resize), False
        with _opened(content) as image:
            if _is_deep(image):
                return _deep(image, shape, resize, window or (0, DEEPEST)) / (1 if window else DEEPEST), False
            if window:
                raise Unfit(f"{name} has 8 bits, and --data.window is for more: leave it out")
            if image.mode in _MODES:
                opaque, composed = _opaque(ImageOps.exif_transpose(image))
                return _pixels(opaque, shape, resize), composed
    except Exception as e:  # the parser may raise anything for a damaged file
        raise _unreadable(content, name, e) from e
    look(content, name)  # says what is wrong with it
    raise AssertionError(name)


def _jpeg(content: bytes) -> np.ndarray | None:
    """The pixels (1 or 3, height, width) of a JPEG file, turned as its EXIF entry says; None if it is another file.

    The same as by Pillow, in half the time. What torchvision does not take, Pillow reads or says what is wrong with.
    """
    decoder = _torchvisions() if content.startswith(_JPEG) else None
    if decoder is None:
        return None
    try:
        found: torch.Tensor = decoder(torch.frombuffer(bytearray(content), dtype=torch.uint8), 0, True)
    except RuntimeError:
        return None
    return found.numpy() if len(found) in COLOURS else None


@cache
def _torchvisions() -> Callable[[torch.Tensor, int, bool], torch.Tensor] | None:
    """torchvision's decoder: (bytes, 0 for the file's own colours, whether to turn by EXIF) -> pixels; or None.

    Its Python function warns at every call that it will be removed one day; then Pillow reads all.
    """
    try:
        importlib.import_module("torchvision.io")  # which takes seconds
        decoder: Callable[[torch.Tensor, int, bool], torch.Tensor] = torch.ops.image.decode_jpeg
    except (ImportError, AttributeError):
        return None
    return decoder


def _pixels(image: Image.Image, shape: tuple[int, int, int], resize: Resize) -> np.ndarray:
    channels, height, width = shape
    pixels = _resized(image.convert(COLOURS[channels]), (width, height), resize, 0)
    return np.asarray(pixels).reshape(height, width, channels).transpose(2, 0, 1)


def _deep(image: Image.Image, shape: tuple[int, int, int], resize: Resize, window: tuple[float, ...]) -> np.ndarray:
    channels, height, width = shape
    values = np.asarray(ImageOps.exif_transpose(image)).astype(np.float32)
    return resized(values.clip(window[0], window[1]), (height, width), resize, window[0])[None].repeat(channels, 0)


def resized(values: np.ndarray, size: tuple[int, int], resize: Resize, fill: float) -> np.ndarray:
    """An array (height, width) of float32, resized to ``size``; padded with ``fill``."""
    if values.shape == size:
        return values
    return np.asarray(_resized(Image.fromarray(values), size[::-1], resize, fill))


def _resized(image: Image.Image, size: tuple[int, int], resize: Resize, fill: float) -> Image.Image:
    """size: width and height."""
    if resize == "crop":
        return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    if resize == "pad":
        # Its type hints know only whole numbers, which float images do not need.
        colour: Any = fill if image.mode == "F" else None
        return ImageOps.pad(image, size, Image.Resampling.BILINEAR, color=colour)
    return image.resize(size, Image.Resampling.BILINEAR)


def _opaque(image: Image.Image) -> tuple[Image.Image, bool]:
    """The image laid on black, and whether any of it is transparent; else as it was."""
    if not image.has_transparency_data:
        return image, False
    layered = image.convert("RGBA")
    if layered.getchannel("A").getextrema()[0] == 255:
        return image, False
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, layered), True


def listed(paths: list[Path], folder: Path, most: int = 3) -> str:
    """A few of the names of files below a folder, for a sentence."""
    names = [printable(path.relative_to(folder).as_posix()) for path in sorted(paths)[:most]]
    return ", ".join(names) + (f" and {len(paths) - most} more" if len(paths) > most else "")
