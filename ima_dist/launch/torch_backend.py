"""Ray Train's set-up of torch.distributed, with the network interface of each node chosen first."""

from __future__ import annotations

from typing import Any

import ray
from ray.train.torch import TorchConfig

from ima_dist.launch.network_interface import name_interface
from ima_dist.worker.ray_internals import TorchBackend


def _name_interface_of_node() -> None:
    name_interface(ray.util.get_node_ip_address())


class _Backend(TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_name_interface_of_node)
        super().on_start(worker_group, backend_config)


class NodeInterface(TorchConfig):
    """TorchConfig whose workers communicate over the interface that has their node's address in the Ray cluster."""

    @property
    def backend_cls(self) -> type:
        return _Backend
