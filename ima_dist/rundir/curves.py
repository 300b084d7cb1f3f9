"""The points of a run's curves: accuracy under an attack at a noise level, as ``curves`` in summary.json holds them."""

from collections.abc import Iterable
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ima_dist.config.attacks import ATTACKS

Row = dict[float, "Point"]  # noise level, without rounding errors -> point


def _known(attack: str) -> str:
    if attack not in ATTACKS:
        raise ValueError("unknown attack")
    return attack


class Point(BaseModel):
    """The accuracy under one attack at one noise level; the fields are the keys of an entry of ``curves``.

    loss: "ce", "margin" or "both", the worse of the two for each sample. noise: radius in ``norm``, in units of the
    data. accuracy: None if it was not finite. epoch: the weights after that many epochs. order: how the samples were
    chosen (``eval.order``); "first" if all were attacked. version: of the attack. turned_wrong: of white noise, the
    share of the samples that are right without noise and wrong with it. met: what the attack met
    (``attacks.counting.COUNTS``), for loss "both", and at the largest level if it attacks all together; None if it was
    not counted. implied: how many samples were not attacked at this level, because they have survived a larger one;
    they count as right. groups: how many groups (patients, say) the samples come from, and effective_samples: how many
    independent samples say as much about the accuracy as they do; None if no groups are known. remarks: names of
    AutoAttack's own warnings in this evaluation; None for other attacks, and for earlier versions. Keys that this
    version does not know are kept as they are.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False)

    attack: Annotated[str, AfterValidator(_known)]
    loss: str
    norm: str
    noise: Annotated[float, Field(ge=0)]
    split: str
    accuracy: Annotated[float, Field(ge=0, le=1)] | None
    samples: Annotated[int, Field(ge=1)]
    steps: int | None
    step_scale: float | None
    epoch: Annotated[int, Field(ge=1)]
    spsa_samples: int | None = None
    order: str = "first"
    version: int = 1
    turned_wrong: Annotated[float, Field(ge=0, le=1)] | None = None
    met: dict[str, int] | None = None
    implied: Annotated[int, Field(ge=0)] = 0
    groups: Annotated[int, Field(ge=1)] | None = None
    effective_samples: Annotated[float, Field(gt=0)] | None = None
    remarks: list[str] | None = None

    @property
    def effective(self) -> float:
        """The number of samples for an interval of the accuracy."""
        return self.samples if self.effective_samples is None else self.effective_samples

    @property
    def level(self) -> float:
        """The noise level without the rounding of float32."""
        return noise_key(self.noise)

    @property
    def share(self) -> float:
        """The accuracy of a point that has one, as those of ``attack_rows`` do."""
        assert self.accuracy is not None
        return self.accuracy

    @property
    def protocol(self) -> str:
        """How the network was attacked, as the column ``protocol`` of outcomes.parquet has it.

        Points of one attack and epoch with equal protocols belong to one evaluation.
        """
        return f"{self.settings} samples={self.samples} order={self.order}"

    @property
    def settings(self) -> str:
        """The protocol without the choice of the samples. Under other settings an attack is another attack."""
        names = ("version", "steps", "step_scale", "spsa_samples")
        return " ".join(f"{name}={getattr(self, name)}" for name in names)

    @property
    def strength(self) -> tuple[int, ...]:
        """Of two evaluations with the same attack the one with the larger strength is shown."""
        return self.version, self.steps or 0, self.spsa_samples or 0, self.samples, self.order == "stratified"

    def to_json(self) -> dict[str, Any]:
        """The entry of summary.json, without what earlier versions did not have and did as the default says."""
        later = {"spsa_samples", "order", "version", "turned_wrong", "met", "implied", "groups", "effective_samples"}
        later |= {"remarks"}
        usual = {name for name in later if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(exclude=usual)

    @classmethod
    def from_json(cls, entry: Any) -> Self:
        """The point of an entry of summary.json. Raises ValueError if it is not one."""
        return cls.model_validate(entry)


def attack_rows(points: Iterable[Point], epoch: int | None = None) -> dict[str, Row]:
    """Attack -> noise level -> point, for loss "both" on the test split; points without an accuracy are left out.

    ``epoch``: the network after that many epochs. Without it the newest that each attack was run on: a row never
    mixes two networks, nor two protocols. Of several protocols the strictest is taken: see ``shown_protocols``.
    """
    chosen = [p for p in points if (p.loss, p.split) == ("both", "test") and p.accuracy is not None]
    newest = {p.attack: p.epoch for p in sorted(chosen, key=lambda p: p.epoch)}
    shown = shown_protocols(chosen)
    rows: dict[str, Row] = {}
    for p in chosen:
        right_epoch = p.epoch == (newest[p.attack] if epoch is None else epoch)
        if right_epoch and p.protocol == shown[p.attack, p.epoch]:
            rows.setdefault(p.attack, {})[p.level] = p
    return rows


def shown_protocols(points: Iterable[Point]) -> dict[tuple[str, int], str]:
    """(Attack, epoch) -> the protocol that tables show: most steps, then most samples, then the newest."""
    # The newest evaluation comes last, and sorting keeps the order of equals.
    return {(p.attack, p.epoch): p.protocol for p in sorted(points, key=lambda p: p.strength)}


def protocol_rows(points: Iterable[Point], epoch: int) -> dict[tuple[str, str], Row]:
    """(Attack, protocol) -> the row of every evaluation of the network after ``epoch`` epochs."""
    rows: dict[tuple[str, str], Row] = {}
    for p in points:
        if (p.loss, p.split, p.epoch) == ("both", "test", epoch) and p.accuracy is not None:
            rows.setdefault((p.attack, p.protocol), {})[p.level] = p
    return rows


def other_rows(points: Iterable[Point], epoch: int) -> list[Row]:
    """The evaluations of the network after ``epoch`` epochs that ``attack_rows`` leaves out, one row each."""
    rows = protocol_rows(points, epoch)
    shown = shown_protocols(point for row in rows.values() for point in row.values())
    return [row for (attack, protocol), row in rows.items() if protocol != shown[attack, epoch]]


def samples_label(row: Row, test_samples: int | None = None) -> str:
    """How many test samples a row is of, and which ones if not all: "200, stratified" or "the first 100".

    ``test_samples``: the size of the test set, if it is known.
    """
    point = next(iter(row.values()))
    if point.order == "stratified":
        return f"{point.samples:,}, stratified"
    return f"the first {point.samples:,}" if point.samples < (test_samples or 0) else f"{point.samples:,}"


def different_samples(rows: Iterable[Row]) -> str | None:
    """A sentence if these rows, which are to be compared, are not of the same test samples."""
    labels = sorted({samples_label(row) for row in rows if row})
    return f"Not all were attacked on the same test samples: {'; '.join(labels)}." if len(labels) > 1 else None


def epochs_of(points: Iterable[Point]) -> list[int]:
    """The epochs after which the network was attacked, ascending."""
    return sorted({p.epoch for p in points})


def levels_of(rows: Iterable[Row]) -> list[float]:
    """The noise levels of several rows, ascending."""
    return sorted({level for row in rows for level in row})


def fewest_samples(points: Iterable[Point]) -> int:
    """The smallest number of samples behind an accuracy."""
    return min(p.samples for p in points)


def noise_key(level: float) -> float:
    """The noise level without the rounding of float32, so that ours and the paper's compare equal."""
    return round(float(level), 6)


def format_noise(level: float) -> str:
    """The noise level as the paper writes it: ``0.05``, ``8/255``, ``1``."""
    pixels = level * 255
    if abs(level - round(level, 4)) > 1e-7 and abs(pixels - round(pixels)) < 1e-3:
        return f"{round(pixels)}/255"
    return f"{level:.6g}"
