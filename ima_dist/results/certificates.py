"""Accuracy of the smoothed classifier (``--attack smoothing``): what ``certificates`` in summary.json holds.

It is another classifier than the network, so nothing here is ever beside the network's accuracies.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, Strict

from ima_dist.results.statistics import wilson_interval
from ima_dist.results.text import NORM_SIGN, accuracy, aligned
from ima_dist.rundir.curves import format_noise
from ima_dist.rundir.run import Run

_Share = Annotated[float, Field(ge=0, le=1)]


class Certificates(BaseModel):
    """The smoothed classifier after an epoch.

    sigma: standard deviation of its noise, in units of the data. draws, alpha: as ``smoothed``. accuracy: share of the
    samples that it classifies correctly without abstaining. abstained: share on which it abstains. radii: ascending L2
    radii; certified: share of the samples that are certified to have their label within each of them.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False)

    epoch: Annotated[int, Field(ge=1)]
    sigma: Annotated[float, Field(gt=0)]
    draws: Annotated[int, Field(ge=1)]
    alpha: Annotated[float, Field(gt=0, lt=1)]
    samples: Annotated[int, Field(ge=1)]
    order: str
    accuracy: _Share
    abstained: _Share
    radii: Annotated[tuple[float, ...], Strict(False)]
    certified: Annotated[tuple[_Share, ...], Strict(False)]

    @property
    def protocol(self) -> str:
        """The column ``protocol`` of certificates.parquet."""
        return f"sigma={self.sigma} draws={self.draws} alpha={self.alpha} samples={self.samples} order={self.order}"

    @property
    def key(self) -> tuple[int, str]:
        """What is replaced when it is measured again."""
        return self.epoch, self.protocol

    @property
    def setting(self) -> str:
        """How it was measured, in words."""
        which = "stratified" if self.order == "stratified" else "the first"
        noise = f"Gaussian noise with σ = {self.sigma:g}, {self.draws:,} draws, α = {self.alpha:g}"
        return f"{noise}, {self.samples:,} samples ({which})"


def measure(found: pa.Table, radii: Iterable[float], *, order: str, **how: Any) -> Certificates:
    """The accuracies behind the rows of one evaluation, as in certificates.parquet, at these radii."""
    label, prediction, certified, radius = (
        found[name].to_numpy() for name in ("label", "prediction", "certified", "radius")
    )
    levels = tuple(sorted(map(float, radii)))
    holds = certified == label
    return Certificates(
        epoch=found["epoch"][0].as_py(),
        samples=found.num_rows,
        order=order,
        accuracy=float((prediction == label).mean()),
        abstained=float((prediction < 0).mean()),
        radii=levels,
        certified=tuple(float((holds & (radius >= level)).mean()) for level in levels),
        **how,
    )


def entries(summary: dict[str, Any]) -> list[Certificates]:
    """The entries of ``certificates``; what is none, in a file that was changed by hand, is passed over."""
    found = []
    for entry in summary.get("certificates") or []:
        try:
            found.append(Certificates.model_validate(entry))
        except ValueError:
            continue
    return found


def shown(run: Run, epoch: int | None = None) -> list[Certificates]:
    """Those of the network after ``epoch``, by default the last one, by ascending σ."""
    epoch = run.config.epochs if epoch is None else epoch
    return sorted((entry for entry in entries(run.summary) if entry.epoch == epoch), key=lambda entry: entry.sigma)


def rows(entry: Certificates) -> list[dict[str, Any]]:
    """A row for the accuracy, then one for each radius: what, radius, share, low and high (95 %, Wilson)."""
    shares: Sequence[tuple[str, float | None, float]] = [
        ("accuracy", None, entry.accuracy),
        *(("certified", level, share) for level, share in zip(entry.radii, entry.certified, strict=True)),
    ]
    found = []
    for what, level, share in shares:
        low, high = wilson_interval(share, entry.samples)
        found.append({"what": what, "radius": level, "share": share, "low": max(low, 0.0), "high": min(high, 1.0)})
    return found


def describe(run: Run, epoch: int) -> str | None:
    """A table for the terminal; None unless the network was certified."""
    blocks = []
    for entry in shown(run, epoch):
        lines = [
            ["radius", *map(format_noise, entry.radii)],
            ["certified accuracy", *map(accuracy, entry.certified)],
        ]
        share = f"Its accuracy is {accuracy(entry.accuracy)}; it abstains on {entry.abstained:.1%} of the samples."
        title = f"Smoothed classifier, not the network itself ({NORM_SIGN['l2']}): {entry.setting}"
        blocks.append("\n".join([title, *aligned(lines), share]))
    return "\n\n".join(blocks) or None


def curve(table: pa.Table, entry: Certificates) -> tuple[np.ndarray, np.ndarray]:
    """Radii (M,) at which the certified accuracy falls, beginning with 0, and the accuracy up to each of them (M,)."""
    own = table.filter(pa.array([key == entry.key for key in _keys(table)], pa.bool_()))
    right = own["certified"].to_numpy() == own["label"].to_numpy()
    radius = np.sort(own["radius"].to_numpy()[right])
    levels = np.unique(np.concatenate([[0.0], radius]))
    return levels, (len(radius) - np.searchsorted(radius, levels, side="left")) / max(own.num_rows, 1)


def _keys(table: pa.Table) -> Iterable[tuple[int, str]]:
    return zip(table["epoch"].to_pylist(), table["protocol"].to_pylist(), strict=True)
