"""A user's own classifier, from the function that builds it."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from pellucid.contract import check_initialised
from pellucid.errors import PellucidError
from pellucid.foreign import as_network
from pellucid.network import Normalise
from pellucid.own_functions import own_function, place_of
from pellucid.types import Images
from pellucid.weights import load_into


def from_code(
    where: str,
    weights: Path | None,
    example: Images | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> tuple[nn.Module, Mapping[str, str]]:
    """What `package.module:function` or `file.py:function` returns, with weights; a `Network` where it can be."""
    module = _built(where)
    if not isinstance(module, nn.Module):
        raise PellucidError(f"{where} returned a {type(module).__name__}: it must return a torch.nn.Module")
    check_initialised(module)
    if weights is not None:
        load_into(module, weights)
    if (mean is None) != (std is None):
        raise PellucidError("--mean and --std go together")
    module.eval()
    facts = {"architecture": f"{type(module).__name__} from {where}"}
    try:
        if example is not None:
            return as_network(module, example, mean=mean, std=std), facts
    except PellucidError as reason:
        facts["no_maps"] = str(reason)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        # Where the module itself does not run, the contract check says so, and more.
        facts["no_maps"] = f"it could not be taken apart ({type(error).__name__}: {error})"
    return nn.Sequential(Normalise(mean, std), module) if mean and std else module, facts


def _built(where: str) -> object:
    """What the function returns; a module that is named itself needs no function."""
    found = own_function(where)
    if isinstance(found, nn.Module):
        return found
    try:
        return found()
    except Exception as error:  # the user's own code: whatever it raised is told, by its name
        raise PellucidError(
            f"{where}() raised {type(error).__name__}: {error}{place_of(error)}; it is called without arguments"
        ) from None
