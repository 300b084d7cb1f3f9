"""Groups of samples that belong together: the images of one patient, say."""

import numpy as np

from ima_dist.data.types import Split


def group_codes(split: Split) -> np.ndarray | None:
    """(N,) int64, equal for samples of one group; None if the groups are not known."""
    if split.groups is None:
        return None
    return np.unique(np.array(split.groups, dtype=str), return_inverse=True)[1].astype(np.int64)
