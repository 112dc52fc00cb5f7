"""A trunk held still, made quicker for attacks on a CPU: batch norms folded into convolutions, channels last.

Exact to rounding. `benchmarks/attacks.py` measures what it brings beside the trunk as it is written.
"""

import copy
from typing import Any

import torch
from torch import fx, nn
from torch.fx.proxy import TraceError
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pellucid.layers import FEW_CHANNELS, Conv2d

# Whose modules compute nothing that a trace would miss: no branch on a value, no hook, no state of their own.
_TRUSTED = ("torch.nn.modules.", "torchvision.models.", "pellucid.architectures.", "pellucid.layers.")


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Conv2d) or super().is_leaf_module(m, module_qualified_name)


def quick_trunk(trunk: nn.Module) -> nn.Module | None:
    """The same function in eval mode, or None where it is not known to be the same, or not quicker."""
    modules = list(trunk.modules())
    if any(module.training or watched(module) or not _is_trusted(module) for module in modules):
        return None
    first = next(iter(trunk.parameters()), None)
    if first is None or first.device.type != "cpu":
        return None
    with torch.no_grad():
        shared = {id(tensor): tensor for tensor in [*trunk.parameters(), *trunk.buffers()]}
        quick = copy.deepcopy(trunk, shared)
        _use_ordinary_convolutions(quick)
        if any(isinstance(module, nn.BatchNorm2d) for module in modules):
            try:
                quick = _folded(fx.GraphModule(quick, _Tracer().trace(quick)))
            except (TraceError, TypeError):  # it branches on what it is given
                return None
    for module in quick.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach()  # `contiguous` would leave a single input channel as it is
            weight = torch.empty_like(weight, memory_format=torch.channels_last).copy_(weight)
            module.weight = nn.Parameter(weight, requires_grad=False)
    return quick.eval()


def _is_trusted(module: nn.Module) -> bool:
    return f"{type(module).__module__}.".startswith(_TRUSTED)


def watched(module: nn.Module) -> bool:
    """Whether a hook is to see what goes through the module."""
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def _folded(graph: fx.GraphModule) -> fx.GraphModule:
    """Every batch norm whose only source is a convolution that feeds nothing else, folded into it."""
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    for node in list(graph.graph.nodes):
        norm, before = _module(graph, node), next(iter(node.all_input_nodes), None)
        conv = _module(graph, before)
        if not isinstance(norm, nn.BatchNorm2d) or not norm.track_running_stats or not isinstance(conv, nn.Conv2d):
            continue
        if before is None or len(before.users) > 1 or called.count(str(before.target)) > 1:
            continue
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias
        )
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def _module(graph: fx.GraphModule, node: fx.Node | None) -> nn.Module | None:
    return graph.get_submodule(str(node.target)) if node is not None and node.op == "call_module" else None


def _use_ordinary_convolutions(trunk: nn.Module) -> None:
    """Ours are for the ordinary layout, but for their input gradient of few channels, which is quick in each."""
    for module in trunk.modules():
        if type(module) is Conv2d and (module.in_channels > FEW_CHANNELS or module.stride != (1, 1)):
            ordinary: Any = nn.Conv2d
            module.__class__ = ordinary
