"""Is plain adversarial training as good as the other methods? (Paper, section 3.3, on COVID-19 CT.)"""

from collections.abc import Collection, Mapping

from ima_dist.config.attacks import STRICTEST_FIRST
from ima_dist.results.choice import Share, differ
from ima_dist.rundir.curves import Point, Row, attack_rows, different_samples, format_noise
from ima_dist.rundir.run import Run


def beside_the_best(runs: Mapping[str, Run], chosen: Collection[str]) -> list[str]:
    """A sentence for each of the ``chosen`` runs: where it is below the best of the others by more than noise.

    ``runs``: name -> evaluated run. They are compared under the strictest attack that all share, noise level by noise
    level, and not by an average (the paper, appendix E). Noise is that of the test samples.
    """
    rows = {name: attack_rows(run.points) for name, run in runs.items()}
    shared = [attack for attack in STRICTEST_FIRST if all(attack in found for found in rows.values())]
    if not shared:
        return ["The runs share no attack, so nothing can be compared."]
    compared = {name: found[shared[0]] for name, found in rows.items()}
    others = {name: row for name, row in compared.items() if name not in chosen}
    said = [_sentence(name, compared[name], others, shared[0]) for name in compared if name in chosen]
    unlike = different_samples(compared.values())
    return [*said, *([unlike] if unlike else [])]


def _sentence(name: str, own: Row, others: Mapping[str, Row], attack: str) -> str:
    levels = sorted(set(own).intersection(*others.values()))
    below = []
    for level in levels:
        best = max(others, key=lambda other: others[other][level].share)
        there, here = others[best][level], own[level]
        if here.share < there.share and differ(_share(here), _share(there)):
            below.append(f"{format_noise(level)} ({here.share:.4f} against {there.share:.4f} of {best})")
    subject = f"{name} under {attack}"
    if not below:
        return f"{subject}: as good as the best of the others at all {len(levels)} noise levels, within noise."
    return f"{subject}: below the best of the others at {len(below)} of {len(levels)} noise levels: {', '.join(below)}."


def _share(point: Point) -> Share:
    return Share((point.share,), point.samples)
