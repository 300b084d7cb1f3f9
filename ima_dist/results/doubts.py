"""Why a result is doubtful, in sentences, from what is stored with the run."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ima_dist.results.attack_doubts import attack_doubts, shown_points
from ima_dist.results.overfitting import overfitting_doubts
from ima_dist.results.self_tests import self_test_doubts
from ima_dist.results.text import number_in, percent
from ima_dist.rundir.curves import attack_rows, format_noise
from ima_dist.rundir.run import Run

# Shares of the inputs' range between which a noise level is plausible, in both norms.
_TINY, _HUGE = 0.001, 0.5
# Larger shares of samples without a gradient are no coincidence.
_FEW_ZERO = 0.05
# Networks with many bends deviate at some samples.
_MANY_WRONG = 0.5
# One noise level cannot suit features whose ranges differ by more.
_SPREAD = 100.0

_ALLOWED = {
    "random": "The network, or its initial weights, are random even with the same seed (--allow random): another "
    "evaluation gives other accuracies, and attacks by one gradient are weak against randomness.",
    "coupled": "A sample's answer depends on the other samples of its batch (--allow coupled): accuracies depend on "
    "the batches.",
    "not-finite": "Logits or gradients are NaN or infinite for some samples (--allow not-finite): attacks may fail "
    "there for no other reason.",
}
_SQUASHED = {
    "softmax": "The network returns probabilities, not logits: attacks on them are weaker, so accuracies under attack "
    "may be too high. Leave out its last softmax.",
    "sigmoid": "All outputs of the network lie between 0 and 1: if it ends in a sigmoid, attacks are weaker, so "
    "accuracies under attack may be too high. Return the values before it.",
}
# Warnings of AutoAttack that put its result in doubt, by their names in summary.json.
_REMARKS = {
    "random": "the network's answers are random",
    "probabilities": "its outputs are probabilities",
    "zero_gradient": "some samples have no gradient",
    "square": "Square, which needs no gradient, broke samples that the other attacks did not",
    "dynamic": "it computes gradients or changes itself in its forward pass",
}


def doubts(run: Run) -> tuple[str, ...]:
    """A sentence for each reason to doubt a run's accuracies under attack; runs of earlier versions state none."""
    findings, found = run.summary.get("findings"), attack_doubts(run)
    found = (*overfitting_doubts(run.config, run.history), *found)
    failed = failed_attacks(run.summary, run.config.epochs)
    found = (*found, *failure_doubts(failed), *remark_doubts(remarks(run)))
    found = (*found, *self_test_doubts(run, run.config.epochs))
    if not isinstance(findings, dict):
        return found
    levels = [run.config.eps_max, *(point.level for point in run.points if point.norm == run.config.norm)]
    return (*found, *door_doubts(findings, levels, run.config.norm))


def failure_doubts(failed: Mapping[str, str]) -> list[str]:
    """``failed``: attack -> why."""
    return [f"{attack} failed ({why})." for attack, why in failed.items()]


def remark_doubts(names: Iterable[str]) -> list[str]:
    """``names``: of what was logged while AutoAttack attacked a network (``evaluation.autoattack.remarks``)."""
    said = [_REMARKS[name] for name in names if name in _REMARKS]
    return [f"AutoAttack warns of this network that {'; '.join(said)}."] if said else []


def failed_attacks(summary: dict[str, Any], epoch: int) -> dict[str, str]:
    """Attack -> why it failed when it was last tried on the network after ``epoch`` epochs."""
    failed = summary.get("failed_attacks")
    found = failed.get(str(epoch)) if isinstance(failed, dict) else None
    return {str(name): str(why) for name, why in found.items()} if isinstance(found, dict) else {}


def remarks(run: Run) -> list[str]:
    """The names of what was logged in the evaluation with AutoAttack that tables show, of the last network."""
    row = attack_rows(shown_points(run), run.config.epochs).get("autoattack", {})
    kept = [point.remarks for point in row.values() if point.remarks is not None]
    if kept:
        return sorted({name for names in kept for name in names})
    # Earlier versions kept only those of the last evaluation.
    found: Any = run.summary.get("remarks")
    for key in (str(run.config.epochs), "autoattack"):
        found = found.get(key) if isinstance(found, dict) else None
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def door_doubts(findings: dict[str, Any], levels: list[float], norm: str) -> tuple[str, ...]:
    """The same from what ``training.door.check_door`` found and the noise levels of training and evaluation.

    Values of another type, in a file that was changed by hand, are passed over.
    """
    found = []
    which = "" if findings.get("trained") is True else "untrained "
    tried, zero = (number_in(findings.get(name)) for name in ("samples", "zero_gradient"))
    if tried and zero and zero / tried > _FEW_ZERO:
        found.append(
            f"The {which}network has a gradient of zero at {zero:.0f} of {tried:.0f} training samples: attacks that "
            "follow the gradient do nothing there, so accuracies under attack may be too high."
        )
    wrong = number_in(findings.get("wrong_gradient"))
    if tried and wrong and wrong / tried > _MANY_WRONG:
        found.append(
            f"The {which}network's gradient is not that of its answers at {wrong:.0f} of {tried:.0f} training "
            "samples, by comparison with differences: attacks that follow it may be led astray, so accuracies under "
            "attack may be too high. Look for detach(), rounding, or a backward pass of its own."
        )
    found += [text for name, text in _SQUASHED.items() if findings.get("squashed") == name]
    allowed = findings.get("allowed")
    found += [text for name, text in _ALLOWED.items() if isinstance(allowed, list) and name in allowed]
    found += _equal_doubts(findings.get("equal_samples"))
    return (*found, *_scale_doubts(findings.get("inputs"), levels, norm))


def _equal_doubts(equal: Any) -> list[str]:
    """``equal``: as ``data.equal_samples`` returns it."""
    count = number_in(equal.get("count")) if isinstance(equal, dict) else None
    if not count:
        return []
    pairs = [pair for pair in equal.get("pairs") or [] if isinstance(pair, list) and len(pair) == 2]
    named = "; ".join(f"{one} equals {other}" for one, other in pairs)
    subject = f"{count:,.0f} validation and test samples equal" if count > 1 else "A validation or test sample equals"
    return [f"{subject} one of another part ({named}): what was learnt by heart counts as right there."]


def range_text(inputs: dict[str, Any], eps_max: float, norm: str, name: str = "ε_max") -> str:
    """The range of the inputs, and ε's share of it, in a sentence for the user; ``name``: what ε is called there."""
    low, high, box = inputs["low"], inputs["high"], inputs["box"]
    kept = f"kept between {box[0]:g} and {box[1]:g}" if box else "without a box, so noise may leave that range"
    text = f"Inputs lie between {low:g} and {high:g}, {kept}"
    part = share(inputs, eps_max, norm)
    if part is None:
        return f"{text}."
    of = "of that range" if norm == "linf" else "of the largest L2 distance in that range"
    return f"{text}; {name} {format_noise(eps_max)} is {percent(part)} {of}."


def share(inputs: dict[str, Any], level: float, norm: str) -> float | None:
    """A noise level as a share of the largest distance, in ``norm``, of two inputs within the range; None if it is 0.

    ``inputs``: as ``training.door.input_range`` returns it.
    """
    low, high, size = (number_in(inputs.get(name)) for name in ("low", "high", "size"))
    if low is None or high is None or size is None or high <= low or size < 1:
        return None
    return level / ((high - low) * (1.0 if norm == "linf" else math.sqrt(size)))


def _scale_doubts(inputs: Any, levels: list[float], norm: str) -> list[str]:
    if not isinstance(inputs, dict):
        return []
    low, high, spread = (number_in(inputs.get(name)) for name in ("low", "high", "spread"))
    found = []
    if low is not None and low == high:
        found.append(f"All inputs are {low:g}: check how the data are read.")
    # The smallest of several levels may be tiny on purpose, the largest not.
    trained, largest = levels[0], max(levels)
    parts = {level: share(inputs, level, norm) for level in dict.fromkeys((trained, largest))}
    for level, part in parts.items():
        if part is not None and level > 0 and not _TINY <= part <= _HUGE:
            limit = "less than 0.1 %" if part < _TINY else "more than 50 %"
            found.append(
                f"Noise level {format_noise(level)} is {percent(part)} of the range of the inputs ({low:g} to "
                f"{high:g}), {limit}: check that both have the same units."
            )
    unbounded = inputs.get("box") is None
    if unbounded and low is not None and high is not None and low >= 0 and 128 < high <= 255 and trained < 1:
        found.append(
            f"Inputs lie between {low:g} and {high:g} without a box: if they are pixels from 0 to 255, noise "
            f"{format_noise(trained)} is less than one grey level. Return uint8 images, or scale them and give a box."
        )
    if spread is not None and spread > _SPREAD:
        found.append(
            f"The ranges of the features differ by a factor of {spread:.3g}: no noise level suits all of them, so "
            "scale them first."
        )
    return found
