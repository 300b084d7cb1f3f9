"""``python -m benchmarks.validation_size``: the sizes of validation sets that the accuracies in the paper allow.

The paper says that validation sets exist, and not how large those of Fashion-MNIST, SVHN and CIFAR-10 are. But the last
columns of its Tables 16 to 21 are accuracies on them. On N samples an accuracy is a k/N with whole k, so a size fits
if each printed number is some k/N rounded to four digits. A size that the accuracies allow is possible, not proven: the
size that ``config.presets`` takes is the one that also is a tenth of the training set.
"""

import math

from ima_dist.config.presets import make_config
from ima_dist.results import paper

# Sizes that are tried: 5,000, which is customary, up to about a tenth of the largest set.
_TRIED = range(5000, 7501)
_DIGITS = 4
# In the published training sets.
TRAINING_IMAGES = {"fashion_mnist": 60000, "svhn": 73257, "cifar10": 50000}


def fits(accuracy: float, size: int) -> bool:
    """Whether some share k/``size`` is ``accuracy`` when it is rounded to four digits."""
    half = 0.5 * 10**-_DIGITS * (1 + 1e-9)  # ties may have been rounded either way
    return math.floor((accuracy + half) * size) >= math.ceil((accuracy - half) * size)


def printed(preset: str) -> list[float]:
    """The different accuracies on this preset's validation set in Tables 16 to 21, as far as they are legible."""
    found = paper.cells(dataset=preset, split="validation", legible="yes")
    return sorted({cell.accuracy for cell in found if cell.table in paper.EPOCHS_TABLES})


def main() -> None:
    """Print a row for each data set, then the accuracies that no k/5000 gives."""
    print("| data set | training images | a tenth | preset | accuracies | no k/5000 | no k/tenth | sizes that fit |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    impossible = {}
    for preset in ("fashion_mnist", "svhn", "cifar10"):
        images, values = TRAINING_IMAGES[preset], printed(preset)
        tenth = round(images / 10)
        impossible[preset] = [value for value in values if not fits(value, 5000)]
        wrong = sum(not fits(value, tenth) for value in values)
        allowed = [size for size in _TRIED if all(fits(value, size) for value in values)]
        cells = (
            paper.DATA_SETS[preset],
            f"{images:,}",
            f"{tenth:,}",
            f"{make_config(preset).data.val_size:,}",
            len(values),
            len(impossible[preset]),
            wrong,
            f"{len(allowed)} of {len(_TRIED)} ({len(allowed) / len(_TRIED):.1%})",
        )
        print("| " + " | ".join(map(str, cells)) + " |")
    for preset, values in impossible.items():
        print(f"\n{paper.DATA_SETS[preset]}, no k/5000: " + (", ".join(f"{v:.4f}" for v in values) or "none"))


if __name__ == "__main__":
    main()
