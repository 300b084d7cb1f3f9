"""Encoded images as samples of one size: what their headers say, and what is said about them."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np
import torch

from ima_dist.config.errors import ConfigError
from ima_dist.config.schema import DataConfig
from ima_dist.data.encoded import Contents, Encoded
from ima_dist.data.pictures import FORMATS, LOOK, decode, look
from ima_dist.data.sources.samples import Catalogue, Files, Labels, Samples, box_of, note, tell
from ima_dist.data.types import UINT8_BOX


def images(found: Catalogue, config: DataConfig) -> Samples:
    """The samples of a catalogue of images, in the size and colours that ``config`` asks for.

    uint8 if all have 8 bits, else float32 from 0 to 1, or within ``config.window`` in their own units.
    Raises ConfigError if the images differ in size and none is asked for.
    """
    looks = found.looks
    assert isinstance(looks, np.ndarray)
    shape = (_channels(looks, config), *size_of(found, config))
    deep = bool(looks["deep"].any())
    window = box_of(config.window) if config.window else None
    if window and not looks["deep"].all():
        name = found.contents.name(int(np.argmin(looks["deep"])))
        raise ConfigError(f"{name} has 8 bits, and --data.window is for more: leave it out.")
    _say(found, looks, config, shape)

    def read(content: bytes, name: str) -> np.ndarray:
        try:
            values, _ = decode(content, name, shape, config.resize, window)
        except ConfigError as e:
            raise ConfigError(f"{e}: mend it, or move it out of the data.") from e.__cause__
        if deep and values.dtype == np.uint8:
            return values / np.float32(255)
        return values

    stored = Encoded(found.contents, read, shape, torch.float32 if deep else torch.uint8, colours_last=True)
    return Samples(stored, found.labels, window or UINT8_BOX)


def look_at(contents: Contents) -> np.ndarray:
    """The headers of all images, (N,) of ``LOOK``. Raises ConfigError, which names the first that is damaged."""
    found = np.empty(len(contents), LOOK)
    for row in range(len(contents)):
        name = contents.name(row)
        try:
            found[row] = look(contents.paths[row] if isinstance(contents, Files) else contents[row], name)
        except ConfigError as e:
            raise ConfigError(f"{e}: mend it, or move it out of the data.") from e.__cause__
    return found


def check_image(content: bytes, name: str) -> None:
    """Decode an image to see that it is whole. Raises ConfigError."""
    try:
        decode(content, name, (1, 8, 8))
    except ConfigError as e:
        raise ConfigError(f"{e}: mend it, or move it out of the data.") from e.__cause__


def size_of(found: Catalogue, config: DataConfig) -> tuple[int, int]:
    """Height and width that ``config`` asks for, or else those of all images. Raises ConfigError if they differ."""
    if config.size is not None:
        return config.size, config.size
    looks = found.looks
    assert isinstance(looks, np.ndarray)
    sizes, first = np.unique(looks[["height", "width"]], return_index=True)
    if len(sizes) > 1:
        a, b = first[:2].tolist()
        raise ConfigError(
            f"the images differ in size ({_sized(found, looks, a)}, {_sized(found, looks, b)}): give the side to "
            "which to resize them, such as --data.size 224."
        )
    return int(sizes[0]["height"]), int(sizes[0]["width"])


def _sized(found: Catalogue, looks: np.ndarray, row: int) -> str:
    seen = looks[row]
    return f"{found.labels.names[row]} has {seen['height']}×{seen['width']} pixels"


def _channels(looks: np.ndarray, config: DataConfig) -> int:
    return config.channels or (1 if (looks["grey"] | looks["deep"]).all() else 3)


def _say(found: Catalogue, looks: np.ndarray, config: DataConfig, shape: tuple[int, ...]) -> None:
    """One line about what was found, and one about each thing that changes images."""
    labels, total = found.labels, len(looks)
    counts = Counter(labels.y.tolist())
    classes = ", ".join(f"{name} {counts[c]}" for c, name in enumerate(labels.class_names[:10]))
    classes += ", …" if len(labels.class_names) > 10 else ""
    colours = {1: "grey", 3: "RGB"}[shape[0]]
    note(f"{total} images in {len(labels.class_names)} classes ({classes}), read as {colours}, {shape[1]}×{shape[2]}.")
    for what, having, done in (
        ("have a transparent colour or an alpha channel", looks["alpha"], "laid on black"),
        ("have colours of 16 bits", looks["cut"], "read with 8 bits"),
        ("have several pages or frames", looks["pages"], "read up to the first"),
    ):
        rows = np.flatnonzero(having).tolist()
        if rows:
            note(f"{len(rows)} of the {total} images {what}, such as {labels.names[rows[0]]}: they are {done}.")
    deep = np.flatnonzero(looks["deep"]).tolist()
    if deep and not config.window:
        note(
            f"{len(deep)} of the {total} images have 16 bits, such as {labels.names[deep[0]]}: they are divided by "
            "65535. If they use less of that range, say which with --data.window LOW,HIGH."
        )


def say_equal(contents: Files, labels: Labels) -> None:
    """Say which files hold the same bytes. Only those that agree in size and first bytes are read as a whole."""
    together = [list(range(len(contents)))]
    steps: tuple[Callable[[int], int | bytes], ...] = (
        contents.size,
        contents.head,
        lambda row: hashlib.sha256(contents[row]).digest(),
    )
    for alike in steps:
        finer = []
        for rows in together:
            found: defaultdict[int | bytes, list[int]] = defaultdict(list)
            for row in rows:
                found[alike(row)].append(row)
            finer += [rows for rows in found.values() if len(rows) > 1]
        together = finer
    equal = [(rows[0], row) for rows in together for row in rows[1:]]
    if equal:
        # A mistake in the labels is the one to show.
        pair = next((p for p in equal if labels.y[p[0]] != labels.y[p[1]]), equal[0])
        other = " with different labels" if labels.y[pair[0]] != labels.y[pair[1]] else ""
        a, b = (labels.names[row] for row in pair)
        many = f"{len(equal)} images are" if len(equal) > 1 else "One image is"
        tell(f"{many} equal to another one, byte for byte: {a} and {b}{other}.")


KINDS = ", ".join(FORMATS)
