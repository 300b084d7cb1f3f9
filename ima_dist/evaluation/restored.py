"""Points and performances that summary.json has lost, computed again from outcomes.parquet."""

import pyarrow as pa
import pyarrow.compute as pc

from ima_dist.config.schema import Config
from ima_dist.evaluation import outcomes
from ima_dist.results.clustered import Codes
from ima_dist.rundir.curves import Point
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_parquet
from ima_dist.rundir.lost_points import lost_points


def restore(run: RunDir, config: Config, test_samples: int, classes: int, groups: Codes | None) -> None:
    """Put back what can be computed; what the attacks met and warned of cannot. One worker calls it.

    test_samples, classes: their number. groups: as in ``outcomes.points_of``. Raises ConfigError, OSError.
    """
    if not run.outcomes_path.exists():
        return
    table, before = read_parquet(run.outcomes_path), run.points()
    probabilities = read_parquet(run.probabilities_path) if run.probabilities_path.exists() else None
    points, measured = [], []
    for lost in lost_points(table, before):
        if lost.settings is None:
            continue
        own = lost.of(table)
        found = outcomes.points_of(own, config, test_samples, groups=groups)
        found = [point.model_copy(update=lost.settings) for point in found]
        if {point.protocol for point in found} != {lost.protocol}:
            continue  # rows are missing
        points += found
        for point in found:
            rows = _with_probabilities(outcomes.rows_at(own, point.model_dump()), probabilities, point)
            measured += outcomes.performances(rows, [point], classes, groups)
    if points:
        curves = {"curves": [point.to_json() for point in (*before, *points)]}
        run.write_json(run.summary_path, {**run.summary(), **curves, **outcomes.joined(run.summary(), measured)})


def _with_probabilities(rows: pa.Table, probabilities: pa.Table | None, point: Point) -> pa.Table:
    """``rows``, the outcomes behind ``point``, with the column "probability" if it is known of all of them."""
    if probabilities is None or "probability" not in probabilities.column_names or point.loss != "both":
        return rows
    here = [pc.field(name) == getattr(point, name) for name in ("attack", "epoch", "noise", "protocol")]
    rows = rows.sort_by("index")
    own = probabilities.filter(here[0] & here[1] & here[2] & here[3]).sort_by("index")
    if not own["index"].equals(rows["index"]):
        return rows
    return rows.append_column("probability", own["probability"])
