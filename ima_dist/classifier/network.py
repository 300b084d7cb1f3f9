"""A trained network with its preprocessing, which answers for images, arrays and files."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ima_dist.attacks.common import attack_mode, predicted
from ima_dist.config.errors import ConfigError, DataWarning
from ima_dist.config.sources import is_built_in
from ima_dist.data import arrays
from ima_dist.data.pictures import COLOURS, Resize, decode, pictures_below
from ima_dist.rundir.inputs import Inputs

Paths = str | Path | Sequence[str | Path]


class Predictions(NamedTuple):
    """labels: (N,) int64, classes from 0. probabilities: (N, classes), the softmax of the logits."""

    labels: np.ndarray
    probabilities: np.ndarray


class Classifier(nn.Module):
    """A network from uint8 or floating-point samples (B, *shape) to logits (B, classes).

    uint8 samples are divided by 255, as in training; floating-point ones are taken as the network sees them, for
    images pixels from 0 to 1. It is in evaluation mode when loaded, and gradients flow to floating-point samples.

    Attributes:
        class_names: one for each class; its number if it has no name.
        card: what there is to know of it, as plain values: data, method, accuracies, warnings (docs/export.md).
        shape: of one sample. box: range of valid samples as the network sees them, or None.
    """

    def __init__(
        self, network: nn.Module, inputs: Inputs, card: dict[str, Any], *, source: str, resize: Resize = "fit"
    ) -> None:
        """source: what loaded the training data, which says how files are prepared; resize: the option of this name."""
        super().__init__()
        self.network = network.eval()
        self.card = card
        self.class_names = inputs.class_names or tuple(map(str, range(inputs.classes)))
        self.shape = inputs.shape
        self.box = inputs.box
        self._unit = inputs.unit
        self._source, self._resize = source, resize
        self._dtype = next((p.dtype for p in network.parameters()), torch.float32)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) in the network's precision. Raises ConfigError for bytes that have no scale."""
        if x.dtype == torch.uint8:
            if not self._unit:
                raise ConfigError("This network was not trained on pixels from 0 to 1: give floating-point samples.")
            x = x.to(self._precision) / 255
        logits: Tensor = self.network(x.to(self._precision))
        return logits

    @property
    def _precision(self) -> torch.dtype:
        return next((p.dtype for p in self.network.parameters()), self._dtype)

    def predict(self, images: Tensor | np.ndarray | Paths, batch_size: int = 64) -> Predictions:
        """The class of each sample, and its probabilities.

        Args:
            images: samples (N, *shape), uint8 or floating point; or paths of images (PNG, JPEG, TIFF, BMP, WebP), or of
                one folder with such files. Files are prepared as those of the training data were.
            batch_size: samples that are computed at once.

        Raises:
            ConfigError: samples of another shape, type or range, a file that is no image, or logits that are NaN.
        """
        device = next((p.device for p in self.network.parameters()), torch.device("cpu"))
        logits = []
        with torch.no_grad(), attack_mode(self):
            for x in self._batches(images, batch_size):
                logits.append(self(x.to(device)).cpu())
        found = torch.cat(logits) if logits else torch.zeros(0, len(self.class_names))
        labels = predicted(found) if len(found) else found.argmax(1)
        if (labels < 0).any():
            number = int((labels < 0).nonzero()[0])
            raise ConfigError(f"The network's logits for sample {number} are NaN or infinite: it has no answer there.")
        return Predictions(labels.numpy(), found.softmax(1).numpy())

    def _batches(self, images: Any, batch_size: int) -> Iterator[Tensor]:
        if isinstance(images, (Tensor, np.ndarray)):
            yield from self._checked(torch.as_tensor(images)).split(batch_size)
            return
        paths = self.files(images)
        if not is_built_in(self._source) or self._source == arrays.SOURCE:
            how = "given as arrays" if self._source == arrays.SOURCE else f"prepared by {self._source}"
            colour, (height, width) = {1: "grey", 3: "RGB"}[self.shape[0]], self.shape[1:]
            warnings.warn(
                DataWarning(
                    f"The training data were {how}; files are now converted to {colour}, resized "
                    f"to {height} × {width} and divided by 255. If that differs, prepare them yourself and give arrays."
                ),
                stacklevel=2,
            )
        for first in range(0, len(paths), batch_size):
            yield self._read(paths[first : first + batch_size])

    def _checked(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise ConfigError(f"This network takes samples (N, {_text(self.shape)}), not {tuple(x.shape)}.")
        if x.dtype != torch.uint8 and not x.is_floating_point():
            raise ConfigError(f"Samples must be uint8 or floating point, not {str(x.dtype).removeprefix('torch.')}.")
        if not len(x):
            return x
        if x.is_floating_point():
            low, high = (float(value) for value in torch.aminmax(x))
            if not (np.isfinite(low) and np.isfinite(high)):
                raise ConfigError("The samples contain NaN or infinite values.")
            # Rounding may leave the box a little.
            if self.box is not None and (low < self.box[0] - 1e-3 or high > self.box[1] + 1e-3):
                hint = ": divide pixels by 255, or give them as uint8" if self._unit else ""
                raise ConfigError(
                    f"The samples go from {low:g} to {high:g}, but this network takes {self.box[0]:g} to "
                    f"{self.box[1]:g}{hint}."
                )
        return x

    def files(self, paths: Paths) -> list[Path]:
        """The files that ``predict`` reads for ``paths``: a folder stands for the images below it.

        Raises ConfigError if a folder holds none, or the network takes no images.
        """
        if not self._unit or len(self.shape) != 3 or self.shape[0] not in COLOURS:
            raise ConfigError(
                f"This network takes samples ({_text(self.shape)}), not grey or RGB images with pixels from 0 to 1: "
                "give arrays."
            )
        if isinstance(paths, (str, Path)):
            given = Path(paths)
            if not given.exists():
                raise ConfigError(f"There is no {given}: check the path.")
            return pictures_below(given) if given.is_dir() else [given]
        return [Path(path) for path in paths]

    def _read(self, paths: Sequence[Path]) -> Tensor:
        channels, height, width = self.shape
        images = [decode(path, str(path), (channels, height, width), self._resize)[0] for path in paths]
        if any(image.dtype != np.uint8 for image in images):  # 16 bits
            images = [image / np.float32(255) if image.dtype == np.uint8 else image for image in images]
        return torch.from_numpy(np.stack(images))


def _text(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))
