"""Attacks: pure functions of a network and a batch."""

from ima_dist.attacks.anpgd import NearestResult, anpgd
from ima_dist.attacks.bpgd import BoundaryResult, bpgd
from ima_dist.attacks.bpgd_last import LastResult, bpgd_last
from ima_dist.attacks.curve import CurveResult, worst_curve
from ima_dist.attacks.ddn import DDNResult, ddn
from ima_dist.attacks.fmn import MinimalResult, fmn
from ima_dist.attacks.friendly import FriendlyResult, early_stopped_pgd
from ima_dist.attacks.minimal import minimal
from ima_dist.attacks.pgd import pgd
from ima_dist.attacks.spsa import spsa
from ima_dist.attacks.worst import worst

__all__ = [
    "BoundaryResult",
    "CurveResult",
    "DDNResult",
    "FriendlyResult",
    "LastResult",
    "MinimalResult",
    "NearestResult",
    "anpgd",
    "bpgd",
    "bpgd_last",
    "ddn",
    "early_stopped_pgd",
    "fmn",
    "minimal",
    "pgd",
    "spsa",
    "worst",
    "worst_curve",
]
