"""The experiments of the paper, and PathMNIST of the journal article, as configurations.

Paper: section 3 and appendix D. Journal article: Ma and Liang, Computer Methods and Programs in Biomedicine 240 (2023).
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ima_dist.config.errors import ConfigError, did_you_mean
from ima_dist.config.own import ALWAYS, OWN, own_options
from ima_dist.config.recipe import over, with_recipe
from ima_dist.config.schema import EXTERNAL, NORMS, Config
from ima_dist.config.values import as_flags, from_dict, nested, option_values, with_options

_MOONS_NOISE = [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]
_CIFAR_NOISE = [i * 4 / 255 for i in range(9)]


class _Preset(NamedTuple):
    """source, factory: without ``ima_dist.data.`` and ``ima_dist.models:``. norms: norm -> ε_max, and the noise levels
    of the paper's tables. options: further ones, by dotted name."""

    source: str
    factory: str
    norms: dict[str, tuple[float, list[float]]]
    options: dict[str, Any]

    @property
    def functions(self) -> dict[str, str]:
        return {"data.source": f"ima_dist.data.{self.source}", "model.factory": f"ima_dist.models:{self.factory}"}


_PRESETS = {
    "moons": _Preset(
        "moons:load", "moons_mlp", {"linf": (0.3, _MOONS_NOISE), "l2": (0.3, _MOONS_NOISE)}, {"epochs": 30}
    ),
    "fashion_mnist": _Preset(
        "idx:load_fashion_mnist",
        "fashion_mnist_cnn",
        {"linf": (0.3, _MOONS_NOISE), "l2": (5.0, [0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0])},
        {"epochs": 60, "data.val_size": 6000},
    ),
    "svhn": _Preset(
        "svhn:load",
        "svhn_cnn",
        {
            "linf": (0.1, [0.0, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1]),
            "l2": (2.0, [0.0, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0]),
        },
        {"epochs": 60, "data.val_size": 7326},
    ),
    "covid_ct": _Preset(
        "covid_ct:load",
        "resnet18_in",
        {"linf": (0.3, [0.0, 0.01, 0.03, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3])},
        {"epochs": 100, "batch_size": 32},
    ),
    "mnist": _Preset(
        "idx:load_mnist",
        "mnist_lenet5",
        {"linf": (0.45, [0.0, 0.1, 0.2, 0.3, 0.4]), "l2": (4.0, [0.0, 1.0, 2.0, 3.0, 4.0])},
        {"epochs": 60, "data.val_size": 6000, "optimizer.name": "adamax", "optimizer.lr": 2e-3},
    ),
    "cifar10": _Preset(
        "cifar10:load",
        "wrn_28_4",
        {"linf": (32 / 255, _CIFAR_NOISE), "l2": (3.0, [0.0, 0.5, 1.0, 1.5, 2.0, 2.5])},
        {
            "epochs": 200,
            "data.val_size": 5000,
            "attack.steps": 10,
            "optimizer.name": "sgd",
            "optimizer.lr": 0.1,
            "optimizer.momentum": 0.9,
            "optimizer.halve_every": 25,
        },
    ),
    "pathmnist": _Preset(
        "medmnist:load",
        "resnet18_bn",
        {"l2": (3.0, [0.0, 0.1, 0.3, 0.5, 0.6, 0.9])},
        {
            "norm": "l2",
            "epochs": 150,
            "model.mean": (0.5,),
            "model.std": (0.5,),
            "optimizer.name": "sgd",
            "optimizer.lr": 0.1,
            "optimizer.momentum": 0.9,
            "optimizer.weight_decay": 1e-3,
        },
    ),
}
# Δε of ima where it is not ε_max / epochs.
_DELTA_EPS = {("pathmnist", "l2"): 0.03}

PRESETS = tuple(_PRESETS)
# Preset -> the norms that it has a largest margin and noise levels for.
PRESET_NORMS = {name: tuple(preset.norms) for name, preset in _PRESETS.items()}
# Where networks without trained weights come from.
_UNTRAINED = ("torchvision", "timm", "ima_dist.models")
# What the configuration of a network trained elsewhere follows from.
_DERIVED = ("method", "eps_max", "epochs")
#: What the split of a preset's data does not keep apart, as words after "split", where that must be said.
SPLIT_LEVELS = {"covid_ct": "by slice, not by patient: slices of one patient may be in training and test"}


def is_the_papers(config: Config) -> bool:
    """True if data and network are the ones that the paper used for this preset, so that its tables apply."""
    network = _PRESETS[config.preset].functions["model.factory"] if config.preset in _PRESETS else None
    return has_papers_data(config) and config.model.factory == network and not config.model.args


def has_papers_data(config: Config) -> bool:
    """True if the data are the ones that the paper used for this preset."""
    return data_name(config) == config.preset


def data_name(config: Config) -> str:
    """The data set's name for people: that of the preset only if the data are the preset's."""
    return data_name_of(option_values(config))


def data_name_of(options: Mapping[str, Any]) -> str:
    """``data_name`` of the configuration with these ``option_values``."""
    preset, source = options["preset"], options["data.source"]
    usual = _PRESETS[preset].functions["data.source"] if preset in _PRESETS else None
    theirs = source == usual and not any(name.startswith("data.args.") for name in options)
    return str(options.get("name") or (preset if theirs else source))


def make_config(preset: str, options: dict[str, Any] | None = None) -> Config:
    """The preset's configuration with ``options`` (dotted names) on top, checked.

    The option ``recipe`` names a recipe, whose values hold where ``options`` have none.
    Raises ConfigError for an unknown preset or recipe, a norm for which it has no noise levels without ``eps_max``
    and ``eval.noise``, or an option that cannot work.
    """
    options = with_recipe(options or {})
    if options.get("method") == EXTERNAL:
        raise ConfigError(
            "--method external is how a network is recorded that was trained elsewhere, and cannot be trained: "
            "python -m ima_dist.evaluate --model.factory … --model.weights FILE attacks such a network."
        )
    return _made(preset, options)


def external_config(preset: str, options: dict[str, Any]) -> Config:
    """The configuration of a network that was trained elsewhere, on the data of ``preset``; checked.

    It has one epoch, and as ε_max the largest noise level. Raises ConfigError as ``make_config``, and if the network
    is one without weights.
    """
    factory = options.get("model.factory")
    if factory is None:
        raise ConfigError("Say how the network is built: --model.factory, such as mine:build or torchvision:resnet18.")
    if options.get("model.weights") is None and factory.partition(":")[0] in _UNTRAINED:
        raise ConfigError(f"--model.factory {factory} builds an untrained network: give its weights, --model.weights.")
    config = _made(preset, {**options, "method": EXTERNAL})
    if config.eval.noise[-1] <= 0:
        raise ConfigError("--eval.noise needs a level above 0, for example --eval.noise 0,4/255,8/255.")
    return config


def _made(preset: str, options: dict[str, Any]) -> Config:
    """As ``make_config``, also for networks that were trained elsewhere."""
    if {"eps_unit", "eps-unit"} & options.keys():
        raise ConfigError(
            "eps_unit is an option of the commands train and evaluate: in files, give noise levels in the data's unit."
        )
    if preset == OWN:
        return _own_config(options)
    if preset not in _PRESETS:
        known = (*PRESETS, OWN)
        raise ConfigError(f"Unknown preset {preset!r}{did_you_mean(preset, known)}. Presets: {', '.join(known)}.")
    if options.get("name") is not None:
        raise ConfigError(f"--name goes with the preset {OWN}: results of {preset} are shown under its own name.")
    usual = _PRESETS[preset]
    if "data.val_size" in options and "data.val_size" not in usual.options:
        having = ", ".join(name for name, known in _PRESETS.items() if "data.val_size" in known.options)
        raise ConfigError(f"--data.val-size goes with {having}: the validation set of {preset} has a fixed size.")
    norm = options.get("norm", usual.options.get("norm", "linf"))
    tree: dict[str, Any] = {"preset": preset, "eval.order": "stratified", **usual.functions, **usual.options}
    if norm in usual.norms:
        tree["eps_max"], tree["eval.noise"] = usual.norms[norm]
    elif norm in NORMS and ("eps_max" not in options or "eval.noise" not in options):
        raise ConfigError(f"The preset {preset} has no noise levels for {norm}: give --eps-max and --eval.noise.")
    if options.get("method") == "ce" and preset == "covid_ct":
        tree |= {"optimizer.name": "adamw", "optimizer.weight_decay": 0.01}
    if options.get("method", "ima") == "ima" and (preset, norm) in _DELTA_EPS:
        tree["delta_eps"] = _DELTA_EPS[preset, norm]
    return _checked(tree, options)


def _checked(usual: dict[str, Any], options: dict[str, Any]) -> Config:
    """The preset's ``usual`` options with ``options`` on top."""
    tree = over(usual, options)
    if tree.get("margin_rule", "paper") != "paper":
        tree = {"margin_update": "online", **tree}
    if options.get("method") != EXTERNAL:
        return from_dict(nested({}, tree))
    config = from_dict(nested({}, {**tree, "epochs": 1, "eps_max": options.get("eps_max", 1.0)}))
    # Noise levels are numbers once they have been checked.
    return config if "eps_max" in options else with_options(config, {"eps_max": config.eval.noise[-1] or 1.0})


def _own_config(options: dict[str, Any]) -> Config:
    found = own_options(options)
    plain = str(found.get("name")).lower().replace("-", "_")
    # PathMNIST was one's own data before it had a preset.
    if plain in (*PRESETS, OWN) and plain != "pathmnist":
        raise ConfigError(f"--name {found['name']} is a preset's name: give your data another one.")
    return _checked({}, found)


def preset_config(config: Config) -> Config:
    """The preset's own configuration for the method and norm of ``config``.

    What the preset cannot know is that of ``config``: for ``own`` its functions and noise levels, for a norm that the
    paper did not use the noise levels.
    """
    given = {"norm": config.norm, "method": config.method}
    own = option_values(config)
    return _made(config.preset, {**given, **{name: own[name] for name in _always(config)}})


def _always(config: Config) -> tuple[str, ...]:
    """The options, beside method and norm, that the preset of ``config`` has no value for."""
    if config.preset == OWN:
        return tuple(name for name in ALWAYS if name != "name" or config.name)
    return () if config.norm in _PRESETS[config.preset].norms else ("eps_max", "eval.noise")


def options_of(config: Config) -> dict[str, Any]:
    """The options by dotted name that make ``config`` from its preset; always with method and norm.

    Of a network trained elsewhere without those that ``external_config`` adds.
    """
    usual, own = option_values(preset_config(config)), option_values(config)
    always = {"method", "norm", *_always(config)}
    changed = {name for name, value in own.items() if name not in usual or value != usual[name]}
    if "optimizer.halve_every" in changed and own["optimizer.halve_every"] is None:
        always.add("optimizer.schedule")  # which is how a preset's halving is switched off
    shown = (always | changed) - {"preset"} - set(_DERIVED if config.method == EXTERNAL else ())
    return {name: value for name, value in own.items() if name in shown}


def train_command(config: Config, out: Path | str) -> str:
    """The command that trains ``config`` into the run directory ``out``; of an external network, the evaluation."""
    options, command = options_of(config), ["ima_dist.train", config.preset]
    if config.method == EXTERNAL:
        command = ["ima_dist.evaluate", *(["--preset", config.preset] if config.preset != OWN else [])]
    return shlex.join(["python", "-m", *command, *as_flags(options), "--out", str(out)])
