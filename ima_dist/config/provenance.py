"""Where each setting of the presets comes from: the paper, the authors' journal article, inferred from it, or ours.

This is the one list. ``docs/settings.md`` is made from it (``python -m ima_dist.config``), the report shows what of it
concerns its runs, and "(paper: …)" stands only where an entry says so. A test holds that every value of every preset
has an entry.
"""

from __future__ import annotations

from collections.abc import Iterable

from ima_dist.config.choices import CHOICES, Origin, Setting
from ima_dist.config.presets import has_papers_data
from ima_dist.config.schema import METHODS, Config

_SECTION_3 = ("moons", "fashion_mnist", "svhn", "covid_ct")  # sections 3.1 to 3.3
_MMA_DATA = ("mnist", "cifar10")  # appendix D
_JOURNAL = ("pathmnist",)  # the journal article
_RELEASED = "as in the code that the authors released with their journal article"
_NOT_IMA = tuple(method for method in METHODS if method != "ima")
_STEPPED = ("ima", "adv", "trades")
_LATER = ("iaat", "fat", "nfgsm")  # published elsewhere, and not in the paper
_AS_FASHION = 'appendix D.1: "other settings are the same as those for Fashion-MNIST"'
_SECTIONS = "sections 3.1 to 3.3, for every method"
_NOT_IN_PAPER = "the paper has no such experiment"
_IMAS = "ε_max of ima: the paper gives no value here"

# Of several entries for one option and run the first holds.
OPTIONS: tuple[Setting, ...] = (
    # What is trained on what
    Setting("data.source model.factory", "paper", "sections 3.1 to 3.3", presets=_SECTION_3),
    Setting("data.source model.factory", "paper", "appendix D; the networks are the MMA paper's", presets=_MMA_DATA),
    Setting("data.source model.factory model.mean model.std", "journal", _RELEASED, presets=_JOURNAL),
    Setting("data.subset", "paper", "section 3: all training samples"),
    Setting(
        "data.noise",
        "ours",
        "the paper does not give the noise of the points; this value comes close to Table 1",
        presets=("moons",),
    ),
    Setting(
        "data.val_size",
        "inferred",
        "a tenth of the published training set. The paper gives no size; the validation accuracies in Tables 16 to 21 "
        "allow a tenth, and for Fashion-MNIST and SVHN exclude 5000 (python -m benchmarks.validation_size)",
        presets=("fashion_mnist", "svhn", "cifar10"),
    ),
    Setting("data.val_size", "inferred", f"as for Fashion-MNIST ({_AS_FASHION})", presets=("mnist",)),
    # Methods that the paper lacks
    Setting("eps_max", "ours", "as for adv: the paper does not have this method", methods=_LATER),
    Setting(
        "attack.steps attack.step_scale",
        "ours",
        "as for adv: the paper does not have this method",
        methods=("iaat", "fat"),
    ),
    Setting("delta_eps iaat.smoothing", "ours", "γ and β of Balaji et al. 2019 for CIFAR-10", methods=("iaat",)),
    Setting("iaat.warmup", "ours", "about the 10 of 110 epochs of Balaji et al. 2019", methods=("iaat",)),
    Setting("fat.tau", "ours", "the schedule of Zhang et al. 2020, in shares of the epochs", methods=("fat",)),
    Setting("nfgsm.noise", "ours", "k of de Jorge et al. 2022", methods=("nfgsm",)),
    # The journal article
    Setting(
        "epochs batch_size optimizer.name optimizer.lr optimizer.weight_decay optimizer.momentum attack.steps "
        "attack.step_scale attack.bisections trades.inverse_lambda",
        "ours",
        "those of ima (1/λ: of Zhang et al. 2019)",
        presets=_JOURNAL,
        methods=_NOT_IMA,
    ),
    Setting(
        "eps_max delta_eps beta epochs batch_size optimizer.name optimizer.lr optimizer.weight_decay "
        "optimizer.momentum attack.steps attack.step_scale attack.bisections",
        "journal",
        _RELEASED,
        presets=_JOURNAL,
        methods=("ima",),
    ),
    Setting("optimizer.halve_every", "ours", "a constant learning rate; --recipe journal has theirs", presets=_JOURNAL),
    Setting("eval.noise", "journal", f"{_RELEASED}: the levels of both of its lists", presets=_JOURNAL),
    # Noise levels in training
    Setting("eps_max", "paper", "section 3.1, for every method", ("moons",), METHODS, ("linf",)),
    Setting("eps_max", "ours", _NOT_IN_PAPER, presets=("moons",), norms=("l2",)),
    Setting("eps_max", "paper", "section 3.2", ("fashion_mnist",), ("ima", "mma", "trades"), ("linf",)),
    Setting("eps_max", "paper", "section 3.3", ("covid_ct",), ("ima", "mma", "trades"), ("linf",)),
    Setting("eps_max", "paper", "Table 16: Δε = 5/60, 60 epochs", ("fashion_mnist",), ("ima",), ("l2",)),
    Setting("eps_max", "paper", "Table 18: Δε = 2/60, 60 epochs", ("svhn",), ("ima",), ("l2",)),
    Setting("eps_max", "paper", "Table 19: Δε = 0.1/60, 60 epochs", ("svhn",), ("ima",), ("linf",)),
    Setting(
        "eps_max", "paper", "Tables 2 to 6, the largest of several", ("fashion_mnist", "svhn", "covid_ct"), ("adv",)
    ),
    Setting("eps_max", "paper", "Table 6, the largest of several", ("covid_ct",), ("rand",)),
    Setting("eps_max", "paper", "appendix D, after the MMA paper", _MMA_DATA, ("ima", "mma")),
    Setting(
        "eps_max",
        "ours",
        f"{_IMAS}; section 3.2 names only 0.3, for Fashion-MNIST",
        presets=("fashion_mnist", "svhn", *_JOURNAL),
        methods=("mma", "trades"),
    ),
    Setting("eps_max", "ours", f"largest norm of a perturbation: {_IMAS}", methods=("ddn",), norms=("l2",)),
    Setting("eps_max", "ours", f"{_IMAS} (rand: only on COVID-19 CT)", methods=("adv", "rand", "trades")),
    Setting("delta_eps", "paper", "note to Algorithm 2: ε_max / epochs", methods=("ima",)),
    Setting(
        "delta_eps",
        "ours",
        "smallest radius of mma's search: ε_max / epochs, as for ima. The MMA paper's code has 0.1 (MNIST, L∞), 0.005 "
        "(CIFAR-10, L∞) and 0.5 (L2)",
        methods=("mma",),
    ),
    # On MNIST and CIFAR-10 the paper trained only ima.
    Setting(
        "epochs batch_size optimizer.name optimizer.lr optimizer.weight_decay optimizer.momentum optimizer.halve_every "
        "attack.steps attack.step_scale attack.bisections trades.inverse_lambda",
        "ours",
        "those of ima (1/λ: of Zhang et al. 2019). The paper trained no other method on this data set: it copied the "
        "rows of mma from the MMA paper",
        presets=_MMA_DATA,
        methods=_NOT_IMA,
    ),
    # IMA
    Setting("beta", "paper", "section 3", presets=_SECTION_3, methods=("ima",)),
    Setting("beta", "paper", _AS_FASHION, presets=("mnist",), methods=("ima",)),
    Setting("beta", "paper", "appendix D.2", presets=("cifar10",), methods=("ima",)),
    Setting("margin_rule", "paper", "Algorithm 2", methods=("ima",)),
    Setting("margin_update", "paper", "Algorithm 2, after each epoch", methods=("ima",)),
    # Length of training
    Setting("epochs batch_size", "paper", _SECTIONS, presets=_SECTION_3),
    Setting("epochs batch_size", "paper", _AS_FASHION, presets=("mnist",)),
    Setting("epochs", "paper", "appendix D.2", presets=("cifar10",)),
    Setting("batch_size", "ours", "the paper gives none; it is the MMA paper's", presets=("cifar10",)),
    # Optimiser
    Setting(
        "optimizer.name optimizer.lr optimizer.weight_decay",
        "paper",
        'section 3.3: "AdamW with default parameters"',
        ("covid_ct",),
        ("ce",),
    ),
    Setting(
        "optimizer.name optimizer.lr optimizer.weight_decay optimizer.momentum",
        "paper",
        f"{_SECTIONS}: Adam with default parameters",
        presets=_SECTION_3,
    ),
    Setting(
        "optimizer.name optimizer.lr optimizer.weight_decay optimizer.momentum",
        "paper",
        "appendix D.1: Adamax with default parameters",
        presets=("mnist",),
    ),
    Setting(
        "optimizer.name optimizer.lr optimizer.momentum optimizer.halve_every",
        "paper",
        "appendix D.2",
        presets=("cifar10",),
    ),
    Setting(
        "optimizer.weight_decay",
        "ours",
        "none: the paper names none (the MMA paper's is 2e-4)",
        presets=("cifar10",),
    ),
    Setting("optimizer.halve_every", "ours", "a constant learning rate: the paper names no schedule"),
    # Attack in training
    Setting("attack.steps", "paper", "section 3", _SECTION_3, ("ima", "adv", "trades", "mma")),
    Setting("attack.steps", "paper", _AS_FASHION, ("mnist",), ("ima",)),
    Setting("attack.steps", "paper", "appendix D.2", ("cifar10",), ("ima",)),
    Setting("attack.steps", "ours", "as for the other methods: the paper gives none for DDN", methods=("ddn",)),
    Setting("attack.step_scale", "paper", "section 3", _SECTION_3, _STEPPED),
    Setting("attack.step_scale", "paper", _AS_FASHION, ("mnist",), ("ima",)),
    Setting("attack.bisections", "paper", "section 3", _SECTION_3, ("ima",)),
    Setting("attack.bisections", "paper", _AS_FASHION, ("mnist",), ("ima",)),
    Setting(
        "attack.step_scale attack.bisections",
        "ours",
        "section 3's: appendix D.2 gives only the number of PGD iterations",
        ("cifar10",),
        ("ima",),
    ),
    Setting("attack.bisections", "ours", "as in the MMA paper's code; the paper gives none for mma", methods=("mma",)),
    Setting(
        "attack.boundary_side",
        "ours",
        "the middle of the last bracket: Algorithm 3 does not say which point is taken",
        methods=("ima",),
    ),
    Setting("trades.inverse_lambda", "ours", "the value of Zhang et al. 2019", methods=("trades",)),
    Setting("rand.kind", "paper", "section 3.3: uniform white noise", ("covid_ct",), ("rand",), ("linf",)),
    Setting("rand.kind", "ours", "uniform, as on COVID-19 CT: the paper has no such experiment", methods=("rand",)),
    # Evaluation
    Setting(
        "eval.attacks",
        "ours",
        "pgd100 is section 3's, worst stands beside it. The job files of Tables 7 to 12 and 20 to 21 name the attacks "
        "of appendices D and F",
    ),
    Setting("eval.noise", "ours", _NOT_IN_PAPER, presets=("moons",), norms=("l2",)),
    Setting("eval.noise", "paper", "the columns of Tables 1 to 8, 10 and 11"),
    Setting("eval.steps", "paper", "section 3 (100-PGD), appendix D.1 (100 iterations of SPSA)"),
    Setting("eval.step_scale", "ours", "α of the attacks in training: the paper gives none for 100-PGD"),
    Setting("eval.spsa_samples", "paper", "appendix D", presets=_MMA_DATA),
    Setting(
        "eval.spsa_samples",
        "ours",
        "those of appendix D: the paper uses SPSA on MNIST and CIFAR-10",
        (*_SECTION_3, *_JOURNAL),
    ),
    Setting("eval.samples", "paper", "section 3: the whole test set"),
    Setting(
        "eval.order",
        "ours",
        "read only if fewer samples are asked for. Tables 9 and 12 take the first 100, and so do their job files",
    ),
    Setting("smoothing.sigma smoothing.draws smoothing.alpha", "ours", "the paper certifies nothing"),
    # What the paper does not mention
    Setting("seed", "ours", "the paper names two models of MNIST and CIFAR-10 s0 and s1, and gives no other seeds"),
    Setting(
        "dtype autocast tf32 class_weights patience label_smoothing ema awp optimizer.schedule optimizer.warmup "
        "optimizer.nesterov optimizer.clip optimizer.decay_norms model.sync_batch_norm model.mean model.std "
        "model.weights_sha256 model.weights_strict data.groups data.groups_sha256 data.split data.augment data.args "
        "data.size data.channels data.resize data.window data.depth model.args eval.val_noise "
        "eval.val_steps eval.val_samples",
        "ours",
        "plain float32, and none of these in use",
    ),
)
# Names of the experiment rather than settings of it.
NAMES = ("preset", "name", "method", "norm")


def origin_of(option: str, config: Config) -> Origin | None:
    """Where the preset's value of an option comes from for a run like ``config``; None if no entry covers it."""
    return next((entry.origin for entry in OPTIONS if option in entry.options and entry.covers(config)), None)


def preset_says(option: str, config: Config) -> str:
    """Whose the preset's value is, for "(paper: 60)" and "(preset: 128)"."""
    return "paper" if has_papers_data(config) and origin_of(option, config) == "paper" else "preset"


def holds(entry: Setting, option: str, config: Config) -> bool:
    """Whether ``entry`` is the one that holds for this option of a run like ``config``."""
    return next((e for e in OPTIONS if option in e.options and e.covers(config)), None) is entry


def not_the_papers(configs: Iterable[Config]) -> list[str]:
    """What is inferred or ours in runs like ``configs``, a sentence each, in the order of the list."""
    known = [config for config in configs if has_papers_data(config)]
    found = []
    for entry in (*OPTIONS, *CHOICES):
        if entry.origin in ("paper", "journal"):
            continue
        if not entry.is_option:
            words = [entry.what] * any(entry.covers(config) for config in known)
        else:
            words = [name for name in entry.options if any(holds(entry, name, config) for config in known)]
        if words:
            source = "" if entry.origin == "ours" else "inferred: "
            found.append(f"{', '.join(words)}: {source}{entry.source}.")
    return found
