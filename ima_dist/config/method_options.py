"""Options of the training methods, and of the attack inside training; ``schema`` has those that all methods share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ima_dist.config.checked import Checked


class AttackConfig(Checked):
    """Settings of the attack inside training (Algorithm 3; paper, section 3)."""

    steps: int = Field(20, ge=1, description="PGD steps in training (N_PGD)")
    bisections: int = Field(10, ge=0, description="halvings of the bracket around the boundary (N_binary)")
    step_scale: float = Field(4.0, gt=0, description="α: total length of the steps, in radii of the ball")
    boundary_side: Literal["midpoint", "inside", "outside"] = Field(
        "midpoint", description="which point of the last bracket is used"
    )


class TradesConfig(Checked):
    inverse_lambda: float = Field(
        6.0, gt=0, description="trades: weight of the divergence against the clean loss (1/lambda)"
    )


class IaatConfig(Checked):
    warmup: int | None = Field(
        None,
        ge=0,
        description="iaat: epochs in which every sample has eps-max, before each gets its own (default: a tenth of the "
        "epochs, at least one)",
    )
    smoothing: float = Field(
        0.1, gt=0, le=1, description="iaat: weight of the new epsilon of a sample against the one before it (beta)"
    )


class FatConfig(Checked):
    tau: int | None = Field(
        None,
        ge=0,
        description="fat: steps that PGD still takes once a sample is misclassified (default: 0, after 5/12 of the "
        "epochs 1, after 3/4 of them 2)",
    )


class NfgsmConfig(Checked):
    noise: float = Field(2.0, ge=0, description="nfgsm: amplitude of the noise before the step, in units of eps-max")
