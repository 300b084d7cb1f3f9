"""IMA in a plain training loop. In the same setting, margins and weights are those of ``ima_dist.fit``."""

import torch
from torch import nn

import ima_dist
from ima_dist.data.order import batches


def build(num_classes, input_shape):
    return nn.Sequential(nn.Linear(input_shape[0], 16), nn.ReLU(), nn.Linear(16, num_classes))


def train(network, x, y, epochs=3, batch_size=64, seed=0):
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    im = ima_dist.IncreasingMargin(len(y), eps_max=0.3, epochs=epochs, seed=seed, dtype=x.dtype)
    for epoch in range(epochs):
        for own in batches(len(y), batch_size, seed, epoch):  # or any loader that also gives the samples' indices
            noisy = im.attack(network, x[own], y[own], own)
            loss = im.loss(network(noisy.inputs), y[own], noisy)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        im.update()
    return im.margins
