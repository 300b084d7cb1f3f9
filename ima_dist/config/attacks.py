"""The attacks of an evaluation: the one table from which options, results, pages and help texts take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ima_dist.config.schema import Config


@dataclass(frozen=True)
class Attack:
    """One attack.

    function: its name in ``evaluation/attacks.py``. rank: 1 is the strictest. about: one line for help texts.
    protocol: how it was done, one sentence without its full stop, with the fields of an entry of summary.json's
    curves in braces. reads: the options ``eval.…`` that it uses. earlier: the protocols of its earlier versions, the
    first one first.
    """

    name: str
    function: str
    rank: int
    about: str
    protocol: str
    reads: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()

    @property
    def version(self) -> int:
        """Grows with each change to its results."""
        return len(self.earlier) + 1

    def protocol_of(self, version: int) -> str:
        """``protocol`` of an earlier version, or of the present one."""
        return (*self.earlier, self.protocol)[min(version, self.version) - 1]


_STRONG = (
    "for each loss, cross-entropy and margin (with two classes only margin, as both take the same steps); then, with "
    "more than two classes, as many steps shared by the three nearest wrong classes (two of three classes), from each "
    "of two opposite starts, shrinking from ε/2 to 0; every iterate counts"
)
_CURVE = (
    "FMN, a fifth as many steps from each of nine starts (the sample; towards its three nearest wrong classes; points "
    "on opposite sides), bounds each sample's distance to the boundary; at the largest noise level below it, {steps} "
    f"steps of PGD with α = {{step_scale}} {_STRONG}; a sample that survives counts as right at all smaller levels, "
    "too, and one that is broken is attacked at the next one"
)
_TABLE = (
    Attack(
        "pgd100",
        "pgd100",
        5,
        "the paper's protocol: PGD at each noise level separately, with cross-entropy and with the margin loss",
        "{steps} steps of PGD with α = {step_scale} at each noise level separately, once with cross-entropy and once "
        "with the margin loss; the last iterate counts, and for each sample the worse of the two losses",
        ("steps", "step_scale"),
    ),
    Attack(
        "worst",
        "strictest",
        2,
        "stricter and cheaper than pgd100: FMN from nine starts, then PGD whose every iterate counts",
        _CURVE.replace("FMN,", "FMN along the walls of the box,"),
        ("steps", "step_scale"),
        earlier=(
            f"{{steps}} steps of PGD with α = {{step_scale}} {_STRONG}, and a sample broken at a smaller noise level "
            "stays broken",
            _CURVE,
        ),
    ),
    Attack(
        "pgd-mma",
        "pgd_mma",
        4,
        "the MMA paper's attack (Tables 7, 8, 10 and 11): PGD from ten random starts",
        "{steps} steps of PGD of length {step_length}·ε from ten random starts, five with cross-entropy and five with "
        "the CW loss; the last iterate of any start counts",
        ("steps",),
    ),
    Attack(
        "spsa",
        "black_box",
        6,
        "black box, without gradients (Tables 9 and 12); slow, so give --eval.samples 100",
        "black box, {steps} iterations of SPSA with {spsa_samples} random directions each",
        ("steps", "spsa_samples"),
    ),
    Attack(
        "autoattack",
        "auto_attack",
        1,
        "the standard version of AutoAttack",
        "the standard version of AutoAttack (with fewer than four classes: apgd-ce, untargeted FAB and Square); "
        "a sample broken at a smaller noise level stays broken",
    ),
    Attack(
        "minimal",
        "minimal_norm",
        3,
        "each sample's distance to the boundary, and so the whole curve at once: FMN from nine starts",
        "FMN, a fifth of {steps} steps from each of nine starts (the sample; towards its three nearest wrong classes; "
        "points on opposite sides), seeks the nearest misclassified point; a sample is broken from its distance on",
        ("steps",),
    ),
    Attack(
        "white-noise",
        "white_noise",
        7,
        "one draw of uniform random noise per sample (appendix A)",
        "one draw of noise, uniform in the ball",
    ),
)
ATTACK_TABLE = {attack.name: attack for attack in _TABLE}
ATTACKS = tuple(ATTACK_TABLE)
#: No attack: it certifies the smoothed classifier, whose accuracies are never among those of the network itself.
SMOOTHING = "smoothing"
#: Whatever ``--eval.attacks`` takes, and a line on each.
EVALUATIONS = (*ATTACKS, SMOOTHING)
ABOUT = "; ".join(
    [f"{attack.name}, {attack.about}" for attack in _TABLE]
    + [f"{SMOOTHING}, certified L2 radii of the network under Gaussian noise (randomised smoothing)"]
)
STRICTEST_FIRST = tuple(sorted(ATTACKS, key=lambda name: ATTACK_TABLE[name].rank))


def mma_step_scale(config: Config) -> float:
    """α of pgd-mma, whose steps are ε/4 long, for MNIST under L∞ ε/40 (Ding et al. 2020)."""
    fine = config.preset == "mnist" and config.norm == "linf"
    return config.eval.steps / (40 if fine else 4)


def protocol(attack: str, config: Config) -> dict[str, Any]:
    """ "version", "steps" and "step_scale" of an attack as in summary.json; None where it has no such thing.

    For spsa also "spsa_samples", the random directions of an iteration.
    """
    read = ATTACK_TABLE[attack].reads
    found = {name: getattr(config.eval, name) if name in read else None for name in ("steps", "step_scale")}
    if attack == "pgd-mma":
        found["step_scale"] = mma_step_scale(config)
    found["version"] = ATTACK_TABLE[attack].version
    return {**found, **({"spsa_samples": config.eval.spsa_samples} if "spsa_samples" in read else {})}


def describe_attack(entry: dict[str, Any]) -> str:
    """How an entry of summary.json's curves was attacked: one sentence without its full stop."""
    steps, scale = entry.get("steps"), entry.get("step_scale")
    given = {
        "steps": "an unknown number of" if steps is None else steps,
        "step_scale": f"{scale:g}" if scale else "unknown",
        "step_length": f"{scale / steps:g}" if scale and steps else "unknown",
        "spsa_samples": entry.get("spsa_samples") or "an unknown number of",
    }
    protocol = ATTACK_TABLE[entry["attack"]].protocol_of(entry.get("version") or 1)
    which = "; on samples chosen in proportion to the classes" if entry.get("order") == "stratified" else ""
    return f"{entry['attack']}: {protocol.format_map(given)}{which}"
