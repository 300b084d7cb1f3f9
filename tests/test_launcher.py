"""How a run is fitted to a cluster's nodes."""

from __future__ import annotations

import pytest

from ima_dist.config import ConfigError
from ima_dist.launcher import Cluster, fit_to
from ima_dist.presets import make_config

CPU_NODE, GPU_NODE = {"CPU": 8.0}, {"CPU": 16.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("options", "nodes", "expected"),
    [
        ({}, [CPU_NODE], Cluster(1, 8, False)),
        ({"workers": 3}, [CPU_NODE], Cluster(3, 2, False)),
        # 16 // 3 = 5 CPUs each would leave the third worker without a node that holds it.
        ({"workers": 3}, [CPU_NODE, CPU_NODE], Cluster(3, 4, False)),
        ({}, [GPU_NODE, GPU_NODE], Cluster(8, 4, True)),
        ({}, [CPU_NODE, GPU_NODE], Cluster(4, 4, True)),
        ({"workers": 2}, [GPU_NODE], Cluster(2, 8, True)),
        ({"device": "cpu"}, [GPU_NODE], Cluster(1, 16, False)),
        # A node with more cards than CPUs gives each worker one CPU and leaves cards over.
        ({}, [{"CPU": 2.0, "GPU": 4.0}], Cluster(2, 1, True)),
    ],
)
def test_workers_and_cpus(options, nodes, expected):
    assert fit_to(make_config("moons", options), nodes) == expected


@pytest.mark.parametrize(
    ("options", "nodes", "says"),
    [
        ({"workers": 9}, [CPU_NODE], "cluster has 8 CPUs: use at most 8"),
        ({"workers": 9}, [GPU_NODE, GPU_NODE], "cluster has 8 GPUs: use at most 8"),
        ({"device": "cuda"}, [CPU_NODE], "sees no CUDA device"),
        ({"model.sync_batch_norm": True}, [CPU_NODE], "works on GPUs alone"),
        ({"model.sync_batch_norm": True, "device": "cpu"}, [GPU_NODE], "works on GPUs alone"),
        ({"workers": 4, "batch_size": 3}, [CPU_NODE], "smaller than the number of workers"),
    ],
)
def test_what_cannot_be_had(options, nodes, says):
    with pytest.raises(ConfigError, match=says):
        fit_to(make_config("moons", options), nodes)
