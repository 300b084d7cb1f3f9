"""Is plain adversarial training as good as the other methods? (Paper, section 3.3, on COVID-19 CT.)"""

from collections.abc import Collection, Mapping

from ima_dist.config.attacks import STRICTEST_FIRST
from ima_dist.results.choice import Share, differ
from ima_dist.results.seeds import Network, attacks_of, candidates_of
from ima_dist.results.statistics import ERROR
from ima_dist.rundir.curves import different_samples, format_noise
from ima_dist.rundir.run import Run


def beside_the_best(runs: Mapping[str, Run], chosen: Collection[str]) -> list[str]:
    """A sentence for each of the ``chosen`` runs: where it is below the best of the others by more than noise.

    ``runs``: name -> evaluated run. They are compared under the strictest attack that all share, noise level by noise
    level, and not by an average (the paper, appendix E). Noise is that of the test samples, by ``choice.differ``; its
    error of 5 % is divided among all comparisons of a chosen run with another one at a level (Bonferroni).
    """
    groups = [(name, [Network(run, run.config.epochs)]) for name, run in runs.items()]
    found = [attacks_of(networks) for _, networks in groups]
    shared = [attack for attack in STRICTEST_FIRST if all(attack in attacks for attacks in found)]
    if not shared:
        return ["The runs share no attack, so nothing can be compared."]
    attack = shared[0]
    _, candidates, pairs, notes = candidates_of(groups, attack)
    levels = [0.0, *sorted(candidates[0].robust)] if candidates else []
    at = {x: {c.name: c.score for c in candidates_of(groups, attack, (x,))[1]} for x in levels}
    mine = [c.name for c in candidates if c.name in chosen]
    others = [c.name for c in candidates if c.name not in chosen]
    unlike = different_samples(row for several in pairs for _, row in several)
    notes += [unlike] if unlike else []
    if not others:
        return notes
    error = ERROR / (len(levels) * len(mine) * len(others)) if mine else ERROR
    return [*(_sentence(name, others, at, attack, error) for name in mine), *notes]


def _sentence(name: str, others: list[str], at: Mapping[float, Mapping[str, Share]], attack: str, error: float) -> str:
    below = []
    for level, shares in at.items():
        best = max(others, key=lambda other: shares[other].mean)
        here, there = shares[name], shares[best]
        if here.mean < there.mean and differ(here, there, error=error):
            below.append(f"{format_noise(level)} ({here.mean:.4f} against {there.mean:.4f} of {best})")
    subject = f"{name} under {attack}"
    if not below:
        return f"{subject}: as good as the best of the others at all {len(at)} noise levels, within noise."
    return f"{subject}: below the best of the others at {len(below)} of {len(at)} noise levels: {', '.join(below)}."
