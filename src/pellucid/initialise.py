"""Initialisation schemes that more than one architecture uses."""

import math

import torch
from torch import nn

from pellucid.network import Network
from pellucid.types import Generator


def fan_in(network: Network, generator: Generator = None) -> Network:
    """In place: every weight ~ N(0, 1 / fan-in), every bias 0. Returns the network."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, 1 / math.sqrt(fan_in), generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
    return network


def he_normal(network: Network, generator: Generator = None) -> Network:
    """In place: every convolution ~ N(0, 2 / fan-out), the head uniform in ±1 / √fan-in. Returns the network."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
    bound = network.head.in_features**-0.5
    for parameter in network.head.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return network
