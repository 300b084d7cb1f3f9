"""``--data.source folder``: images in a folder for each class, or in train, val and test with such folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ima_dist.config.errors import ConfigError, printable
from ima_dist.config.schema import DataConfig
from ima_dist.data.pictures import Found, listed, pictures_in
from ima_dist.data.sources import copy
from ima_dist.data.sources.images import KINDS, images, look_at, say_equal
from ima_dist.data.sources.samples import Catalogue, Files, Labels, check_directory, data_set, tell

# Names of folders, in lower case, that stand for a part.
PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def load(config: DataConfig, seed: int) -> dict[str, Any]:
    """The images below ``config.dir``, whose folders are the classes; folders train, val and test may be above them.

    x (N, C, H, W), uint8 or, for images of 16 bits, float32. Options size, channels, resize and window as in
    ``DataConfig``. Warns (DataWarning) of what was found and of all that was left out or changed; raises ConfigError
    if there is nothing to train on, or an image is damaged.
    """
    place = check_directory(config)
    return data_set(images(copy.read(place, "folder") if copy.is_copy(place) else find(place), config))


def find(folder: Path) -> Catalogue:
    """The images with their labels; none is decoded. Raises ConfigError if there are no folders with images."""
    paths, labels = files(folder, KINDS)
    contents = Files(paths)
    say_equal(contents, labels)
    return Catalogue(contents, labels, look_at(contents))


def files(folder: Path, kinds: str, wanted: Callable[[Path], bool] | None = None) -> tuple[list[Path], Labels]:
    """The files below the folders of classes, those that are ``wanted`` (default: images), with their labels.

    kinds: for messages. Raises ConfigError if there are none.
    """
    if not folder.is_dir():
        raise ConfigError(f"--data.dir {folder} is a file: a directory with a folder for each class is needed.")
    paths: list[Path] = []
    texts: list[str] = []
    parts: list[str] = []
    rest = Found()
    for part, place in _parts(folder, wanted):
        for class_folder in _folders(place):
            found = pictures_in(class_folder, root=folder, wanted=wanted)
            if not found.files:
                tell(f"{printable(class_folder.relative_to(folder).as_posix())} holds no images, so it is no class.")
            rest.left_out += found.left_out
            rest.loops += found.loops
            paths += found.files
            texts += [printable(class_folder.name)] * len(found.files)
            parts += [part] * len(found.files)
    if not paths:
        raise ConfigError(_nothing(folder, kinds, wanted))
    _say_left(folder, rest)
    names = [printable(path.relative_to(folder).as_posix()) for path in paths]
    labels = Labels.of_texts(texts, names, parts)
    if len(labels.class_names) < 2:
        raise ConfigError(
            f"{folder} has images of only one class, {texts[0]}: a folder for each class is needed, at least two."
        )
    return paths, labels


def _parts(folder: Path, wanted: Callable[[Path], bool] | None) -> list[tuple[str, Path]]:
    """The folders of the classes' folders, each with its part ("" if it is not named).

    Raises ConfigError if there are other folders with images beside parts: neither is then sure to be meant.
    """
    inside = {path: PARTS.get(path.name.lower(), "") for path in _folders(folder)}
    if "train" not in inside.values():
        return [("", folder)]
    if not all(inside.values()):
        inside = {path: part for path, part in inside.items() if pictures_in(path, root=folder, wanted=wanted).files}
        others = [printable(path.name) for path, part in inside.items() if not part]
        if others and not {"train", "val"} <= set(inside.values()) and not {"train", "test"} <= set(inside.values()):
            return [("", folder)]
        if others:
            raise ConfigError(
                f"{folder} has folders of parts ({', '.join(p.name for p, part in inside.items() if part)}) and others "
                f"with images ({', '.join(others)}): move these away, or name them in a list (--data.source list)."
            )
    return [(part, path) for path, part in inside.items()]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX")))


def _nothing(folder: Path, kinds: str, wanted: Callable[[Path], bool] | None) -> str:
    if pictures_in(folder, below=False, wanted=wanted).files:
        return (
            f"{folder} holds images but no folders with images: put those of each class into a folder of its own, or "
            "list files and labels in a CSV file (--data.source list)."
        )
    return f"{folder} holds no folders with images ({kinds}): check --data.dir."


def _say_left(folder: Path, rest: Found) -> None:
    if rest.left_out:
        many = (
            f"{len(rest.left_out)} files are no images and are"
            if len(rest.left_out) > 1
            else "One file is no image and is"
        )
        tell(f"{many} left out: {listed(rest.left_out, folder)}.")
    if rest.loops:
        tell(f"Links that lead back to a folder above them are not followed: {listed(rest.loops, folder)}.")
