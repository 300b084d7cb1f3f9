"""What the self-tests of a run's attacks found (``evaluation.self_test``), in sentences."""

from typing import Any

from ima_dist.results.statistics import wilson_interval
from ima_dist.results.text import number_in, percent
from ima_dist.rundir.curves import format_noise
from ima_dist.rundir.run import Run

#: The most samples of a self-test.
MOST_TESTED = 50
#: Attacks that search for nothing, so there is nothing to test.
NOT_TESTED = ("white-noise", "smoothing")
# An attack that finds a smaller share of what was planted is too weak for the network (Zimmermann et al. 2022).
_ENOUGH = 0.95
# A test says little if random noise finds more of what was planted, or if less could be planted.
_EASY, _PLANTED = 0.5, 0.5
# What tells the self-tests of a network apart.
_KEY = ("attack", "epoch", "noise", "version", "steps", "step_scale", "spsa_samples")


def joined(before: Any, new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entry "self_tests" of summary.json: ``new`` ones in place of those by the same protocol."""
    done = [_key(entry) for entry in new]
    return [entry for entry in _entries(before) if _key(entry) not in done] + new


def self_test_lines(run: Run, epoch: int) -> list[str]:
    """A sentence for each self-test of the network after ``epoch`` epochs."""
    return [_line(entry) for entry in _of_epoch(run, epoch)]


def self_test_doubts(run: Run, epoch: int) -> list[str]:
    """A sentence for each attack that missed too much of what was planted, and for tests that say little."""
    found = []
    for entry in _of_epoch(run, epoch):
        attack, samples, there, by_chance, hit = (entry.get(name) for name in _COUNTED)
        if hit is not None and there and hit / there < _ENOUGH:
            found.append(
                f"{attack} missed {there - hit} of {there} adversarial samples that were planted at noise "
                f"{format_noise(entry['noise'])}: it is too weak for this network, so accuracies under it may be too "
                "high. Give it more steps, or compare with another attack."
            )
        elif samples and there / samples < _PLANTED:
            found.append(
                f"The self-test of {attack} says little: an adversarial sample could be planted for only {there} of "
                f"{samples} samples."
            )
        elif there and by_chance / there > _EASY:
            found.append(
                f"The self-test of {attack} says little: random noise finds {by_chance} of {there} planted "
                "adversarial samples, too."
            )
    return found


_COUNTED = ("attack", "samples", "planted", "by_chance", "found")


def _line(entry: dict[str, Any]) -> str:
    attack, samples, there, by_chance, hit = (entry.get(name) for name in _COUNTED)
    what = f"Self-test of {attack} at noise {format_noise(entry['noise'])}"
    if hit is None:
        return f"{what}: the attack failed ({entry.get('failed')})."
    if not there:
        return f"{what}: no adversarial sample could be planted for any of {samples} samples."
    low, high = wilson_interval(hit / there, there)
    return (
        f"{what}: it finds {hit} of {there} planted adversarial samples (95 % interval {percent(low)} to "
        f"{percent(min(high, 1.0))}), uniform random noise {by_chance}."
    )


def _of_epoch(run: Run, epoch: int) -> list[dict[str, Any]]:
    return [entry for entry in _entries(run.summary.get("self_tests")) if entry["epoch"] == epoch]


def _entries(stored: Any) -> list[dict[str, Any]]:
    """The entries that have what a sentence needs; a file may have been changed by hand."""
    entries = [entry for entry in stored if isinstance(entry, dict)] if isinstance(stored, list) else []
    counts = ("epoch", "noise", "samples", "planted", "by_chance")
    return [
        e for e in entries if all(number_in(e.get(n)) is not None for n in counts) and (e.keys() & {"found", "failed"})
    ]


def _key(entry: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(entry.get(name) for name in _KEY)
