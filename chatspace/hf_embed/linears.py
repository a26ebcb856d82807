"""Linear layers on a CPU, with their weights laid out as oneDNN wants them, once and not each time.

Source: the operators that torch.compile emits for a frozen linear layer,
`torch/_inductor/mkldnn_ir.py` and `torch/_inductor/fx_passes/mkldnn_fusion.py`. They are private to
PyTorch, so whoever uses this checks the result and can undo it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

_ROWS = 2048  # rows of the input that the layout is chosen for; any number is right


class PrepackedLinear(torch.nn.Module):
    """A linear layer whose weight only oneDNN can read."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self._weight = weight  # not a parameter: an opaque tensor cannot be moved or saved
        self.bias = linear.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns (..., out_features) of (..., in_features)."""
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            hidden, self._weight, self.bias, "none", [], ""
        )
        return out


def prepack_linears(model: torch.nn.Module) -> Callable[[], None]:
    """Replaces a model's linear layers in place, and returns what puts them back.

    Raises:
        AttributeError: this PyTorch has no such operator.
        RuntimeError: oneDNN is not there or refuses the dtype.
    """
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is torch.nn.Linear
    ]
    with torch.inference_mode(False), torch.no_grad():
        replacements = [PrepackedLinear(child) for _, _, child in places]
    for (parent, name, _), replacement in zip(places, replacements, strict=True):
        setattr(parent, name, replacement)

    def undo() -> None:
        for parent, name, child in places:
            setattr(parent, name, child)

    return undo
