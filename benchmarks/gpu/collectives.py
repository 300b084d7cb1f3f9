"""Every collective operation the project uses, on NCCL with one worker, and DDP in all precisions."""

from __future__ import annotations

import tempfile
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.gpu.check import Check, Skip
from ima_dist.core import distributed


def run(check: Check) -> None:
    backend = "nccl" if check.on_card else "gloo"
    if check.on_card:
        if not dist.is_nccl_available():
            raise Skip("this torch was built without NCCL")
        # Collectives of objects travel by the current card.
        torch.cuda.set_device(check.device)
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            backend, init_method=f"file://{folder}/store", rank=0, world_size=1, timeout=timedelta(seconds=60)
        )
        try:
            with check.attempt("collectives", backend=backend):
                check.judge("collectives", _collectives_are_right(check.device), backend=backend)
            for kind in ("none", "float16", "bfloat16"):
                with check.attempt("collectives", ddp=kind):
                    check.judge("collectives", _ddp_step_is_finite(check.device, kind), ddp=kind)
        finally:
            dist.destroy_process_group()


def _collectives_are_right(device: torch.device) -> bool:
    """Each of them by itself, since ``core.distributed`` skips most for one worker."""
    right = []
    for dtype in (torch.float32, torch.float64, torch.int64, torch.uint8):
        x = torch.arange(5, device=device).to(dtype)
        for operation in (dist.ReduceOp.SUM, dist.ReduceOp.MAX):
            reduced = x.clone()
            dist.all_reduce(reduced, op=operation)
            right.append(reduced.equal(x))
        gathered = torch.empty_like(x)
        dist.all_gather([gathered], x)
        right.append(gathered.equal(x))
        for part in (x, x[:0], x > 2):
            (got,), arriving = distributed.exchange([part], torch.tensor([len(part)], device=device))
            right.append(got.equal(part) and arriving.tolist() == [len(part)])
    objects: list[object] = [None]
    dist.all_gather_object(objects, {"a": 1})
    return all(right) and objects == [{"a": 1}]


def _ddp_step_is_finite(device: torch.device, kind: str) -> bool:
    """A training step through DDP, autocast and the loss scaler leaves finite weights that have moved."""
    from ima_dist.training.network import autocast, scaler

    torch.manual_seed(0)
    first = nn.Linear(8, 8)
    network = nn.Sequential(first, nn.BatchNorm1d(8), nn.Linear(8, 2)).to(device)
    devices = [device.index] if device.type == "cuda" else None
    wrapped = autocast(nn.parallel.DistributedDataParallel(network, device_ids=devices), kind)
    optimizer, scale = torch.optim.SGD(network.parameters(), 0.01), scaler(kind, device)
    before = first.weight.detach().clone()
    # The first scale may be too large for float16: the scaler then leaves the step out and halves it.
    for _ in range(20):
        optimizer.zero_grad()
        scale.scale(wrapped(torch.rand(4, 8, device=device)).square().mean()).backward()
        scale.unscale_(optimizer)
        scale.step(optimizer)
        scale.update()
    weights = first.weight.detach()
    return bool(weights.isfinite().all()) and not weights.equal(before)
