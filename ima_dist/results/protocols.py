"""The attacks in words."""

from __future__ import annotations

from ima_dist.rundir.curves import Point


def describe_attack(point: Point) -> str:
    """How the accuracy of a point was measured, one sentence without its full stop."""
    attack, steps, scale = point.attack, point.steps, point.step_scale
    if attack == "autoattack":
        return "autoattack: the standard version of AutoAttack; a sample that a smaller level broke stays broken"
    if attack == "white-noise":
        return "white-noise: one draw of noise, uniform in the ball"
    if attack == "spsa":
        directions = point.spsa_samples or "an unknown number of"
        return f"spsa: black box, {steps} iterations of SPSA with {directions} random directions each"
    if attack == "pgd-mma":
        share = f"{scale / steps:g}" if scale and steps else "unknown"
        return (
            f"pgd-mma: {steps} steps of PGD of length {share}·ε from ten random starts, five with cross-entropy and "
            "five with the CW loss; any of the ten last iterates counts"
        )
    if attack == "worst":
        return (
            f"worst: {steps} steps of PGD with α = {scale:g} and either loss, then as many shared by the five nearest "
            "classes; any iterate counts, and a sample broken at a smaller level stays broken"
        )
    return (
        f"pgd100: {steps} steps of PGD with α = {scale:g} at each level alone, once with cross-entropy and once with "
        "the margin loss; the last iterate counts, and the worse of the two losses for each sample"
    )
