"""What is ours, or inferred, in the paper's experiments, and is no option. See ``provenance``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ima_dist.config.presets import PRESETS
from ima_dist.config.schema import METHODS, NORMS, Config

Origin = Literal["paper", "journal", "inferred", "ours"]


@dataclass(frozen=True)
class Setting:
    """One setting, or several with the same origin.

    what: options by dotted name, separated by spaces; or, for what is no option, a sentence without its full stop.
    source: the place in the paper, or what the authors released with their journal article; if the setting is from
        neither, what it was inferred from or why we chose it.
    presets, methods, norms: what it is for.
    """

    what: str
    origin: Origin
    source: str
    presets: tuple[str, ...] = PRESETS
    methods: tuple[str, ...] = METHODS
    norms: tuple[str, ...] = NORMS
    is_option: bool = True

    @property
    def options(self) -> tuple[str, ...]:
        """The dotted names of the options; none for what is no option."""
        return tuple(self.what.split()) if self.is_option else ()

    def covers(self, config: Config) -> bool:
        """Whether it is for runs like ``config``."""
        return config.preset in self.presets and config.method in self.methods and config.norm in self.norms


def _choice(what: str, source: str, origin: Origin = "ours", **scope: Any) -> Setting:
    return Setting(what, origin, source, is_option=False, **scope)


_PIXELS = ("fashion_mnist", "mnist", "svhn", "cifar10")
_BASELINES = ("ce", "adv", "rand", "trades", "mma", "ddn")
_ELSEWHERE = ("iaat", "fat", "nfgsm")
_SILENT = "the paper does not say"

CHOICES: tuple[Setting, ...] = (
    # All experiments
    _choice(
        "Attacks, and the split into right and wrong in Algorithms 1 and 2, run the network in evaluation mode",
        _SILENT,
    ),
    _choice(
        "ξ of eq. 1 is uniform in the ε-ball, and drawn anew for each sample in every epoch",
        'the paper says only "random noise with ‖ξ‖ ≤ ε"',
    ),
    _choice(
        "Samples are shuffled in every epoch; the last batch of an epoch is smaller, and is trained on too", _SILENT
    ),
    _choice("Initial weights are PyTorch's defaults", _SILENT, presets=("moons", "fashion_mnist", "mnist", "svhn")),
    _choice(
        "The sequence in Algorithm 3 begins with the clean sample, and its first crossing is bisected",
        "the paper does not say what happens if the first noisy sample is already misclassified",
        methods=("ima",),
    ),
    _choice(
        "pgd100 counts a sample as wrong if either loss finds an error; both start from one ξ, drawn once for each "
        "sample and noise level",
        'section 3 says only that 100-PGD runs "twice", with MarginalLoss and CrossEntropyLoss',
    ),
    _choice(
        "No model selection: the network after the last epoch is evaluated",
        "the paper describes a choice by validation accuracy for ima (appendix F), and none for the others",
        methods=_BASELINES,
    ),
    # Baselines
    _choice(
        "Loss of rand: half the cross-entropy of the clean sample and half that of the noisy one, as eq. 2",
        "section 3.3 gives none",
        methods=("rand",),
    ),
    _choice(
        "Noise of rand under L2: uniform in the ball",
        "the paper has rand under L∞ only",
        methods=("rand",),
        norms=("l2",),
    ),
    _choice(
        "TRADES: start uniform within 0.001 of the sample in each value, steps of eq. 1 in both norms, the box kept "
        "from the start on, one forward pass for clean and noisy samples",
        "the paper gives the number and size of the steps (section 3); Zhang et al. start from normal noise",
        methods=("trades",),
    ),
    _choice(
        "MMA: search in evaluation mode, up to 1.05·d_max, along the normalised direction and inside the box; steps of "
        "2.5·ε/N; weight 1/3 for the clean loss",
        "the paper gives the number of iterations (section 3); the rest is as in the MMA paper's code, but for the "
        "mode, the direction and the box",
        methods=("mma",),
    ),
    _choice(
        "DDN: cross-entropy at the adversarial sample only, norms that start at 1 and change by 5 % per step, cut at "
        "ε_max; no epochs of standard training before",
        "the paper has results of DDN (Tables 3 and 5) and no settings; Rony et al. 2019 begin with standard training "
        "on CIFAR-10",
        methods=("ddn",),
    ),
    _choice(
        "The method itself, after its publication (docs/methods.md): the paper's tables have no row for it",
        "published by others",
        methods=_ELSEWHERE,
    ),
    # Data
    _choice(
        "Moons: raw coordinates without a box; training, validation and test points are drawn independently",
        _SILENT,
        presets=("moons",),
    ),
    _choice(
        "The validation set has the same number of images of each class, chosen by the seed; SVHN's classes are not "
        "equally frequent",
        _SILENT,
        presets=_PIXELS,
    ),
    _choice(
        "Pixels lie in [0, 1], and are not standardised outside the network",
        'the paper says "e.g. 0 to 1" (section 2.1)',
        presets=(*_PIXELS, "covid_ct"),
    ),
    _choice(
        "CIFAR-10 images are shifted by up to 4 pixels with mirrored edges, and flipped half of the time",
        'appendix D.2 says "standard data augmentation (e.g. crop)"; this is as in the MMA paper\'s code',
        presets=("cifar10",),
    ),
    _choice(
        "COVID-19 CT images are grey with one channel, resized bilinearly; transparency is laid on black",
        "section 3.3 gives only the size",
        presets=("covid_ct",),
    ),
    # Networks
    _choice(
        "Instance norm has no parameters and keeps no running statistics; layer norm has parameters; leaky ReLU has "
        "the slope 0.01",
        "PyTorch's defaults: the paper names only the layers",
        presets=("fashion_mnist", "svhn"),
    ),
    _choice(
        "A convolution before instance norm has no bias",
        "the norm cancels it, and Adam would turn the rounding noise in its gradient into steps",
        presets=("fashion_mnist", "svhn"),
    ),
    _choice(
        "Layer norm has parameters; leaky ReLU has the slope 0.01",
        "PyTorch's defaults: the paper names only the layers",
        presets=("moons",),
    ),
    _choice(
        "ResNet-18 starts untrained, with torchvision's initial weights; its instance norm has no parameters",
        "the paper does not say whether its network was trained before",
        presets=("covid_ct",),
    ),
    _choice(
        "WRN-28-4: images standardised one by one inside the network, and initial weights, as in the MMA paper's code; "
        "clean and noisy samples share one forward pass, and so the statistics of batch norm, of each worker's share",
        'appendix D.2 says "the same as that in the MMA paper"',
        presets=("cifar10",),
    ),
    _choice(
        "ResNet-18 for images of 28×28 pixels: torchvision's, untrained, with a 3×3 convolution without stride and no "
        "pooling in front; clean and noisy samples share one forward pass, and so the statistics of batch norm, of "
        "each worker's share",
        "the authors' released code has this network written out, and two passes",
        presets=("pathmnist",),
    ),
    # Evaluation
    _choice(
        "SPSA estimates the gradient of the margin loss and takes Adam's steps; a misclassified sample is left alone",
        "appendix D.1 gives numbers of samples and iterations, delta and learning rate",
        presets=("mnist", "cifar10"),
    ),
    _choice(
        "White noise: one draw for each sample", "appendix A does not say how many there were", presets=("covid_ct",)
    ),
    _choice(
        "The 2.75 % of appendix A are right answers that the noise turns wrong, as a share of all test samples",
        "11 of 400 are 2.75 %, and no number of the 383 right ones is; the errors of ce without noise (Table 6) "
        "are more",
        "inferred",
        presets=("covid_ct",),
        methods=("ce",),
    ),
    _choice(
        "Tables 20 and 21 are of the model with seed 1",
        "their last rows have the digits of IMA_s1 in Tables 10 and 11",
        "inferred",
        presets=("cifar10",),
        methods=("ima",),
    ),
)
