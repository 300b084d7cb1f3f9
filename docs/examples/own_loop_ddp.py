"""IMA under DDP: ``torchrun --nproc-per-node 2 own_loop_ddp.py DATA MARGINS``, two files of ``torch.save``.

DATA holds (x, y). Every global batch must split into equal shares, since DDP averages the workers' gradients.
"""

import sys

import torch
import torch.distributed as dist
from own_loop import build
from torch.nn.parallel import DistributedDataParallel

import ima_dist
from ima_dist.core.distributed import share_of_batch
from ima_dist.data.order import batches


def train(network, x, y, epochs=3, batch_size=64, seed=0):
    network = DistributedDataParallel(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    im = ima_dist.IncreasingMargin(len(y), eps_max=0.3, epochs=epochs, seed=seed, dtype=x.dtype)
    for epoch in range(epochs):
        for batch in batches(len(y), batch_size, seed, epoch):
            own = share_of_batch(batch)  # of this worker
            noisy = im.attack(network, x[own], y[own], own)
            loss = im.loss(network(noisy.inputs), y[own], noisy)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        im.update()
    return im.margins


if __name__ == "__main__":
    dist.init_process_group("gloo")
    x, y = torch.load(sys.argv[1])
    torch.manual_seed(0)
    margins = train(build(2, (2,)).to(x.dtype), x, y)
    if dist.get_rank() == 0:
        torch.save(margins, sys.argv[2])
    dist.destroy_process_group()
