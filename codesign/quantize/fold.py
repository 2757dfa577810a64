"""Channel scales moved from a layer's input into its weights, and out of the operation before it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from codesign.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """Inputs are divided by `factors` [k], the weights that meet them multiplied: in exact numbers nothing changes."""

    factors: "Tensor"

    def into_weights(self, w: "Tensor") -> "Tensor":
        """Return the weights [n, k] with columns multiplied, in their own type."""
        return (w.float() * self.factors).to(w.dtype)

    def out_of_norm(self, gain: "Tensor") -> "Tensor":
        """Return the gains, or biases, [k] of the normalization before the layer, divided."""
        if gain.shape != self.factors.shape:
            raise InputError(f"A norm of {tuple(gain.shape)} gains cannot take {len(self.factors)} channel scales.")
        return (gain.float() / self.factors).to(gain.dtype)

    def out_of_rows(self, w: "Tensor") -> "Tensor":
        """Return the weights [k, j] of the linear layer before this one with rows divided."""
        if len(w) != len(self.factors):
            raise InputError(
                f"The layer before has {len(w)} outputs, not the {len(self.factors)} channels that are scaled; with "
                "grouped-query attention v_proj is smaller than the input of o_proj. Leave this pair as it is."
            )
        return (w.float() / self.factors[:, None]).to(w.dtype)

    def out_of_inputs(self, x: "Tensor") -> "Tensor":
        """Return activations [..., k] as the operation before will give them."""
        return (x.float() / self.factors).to(x.dtype)


def usable_factors(factors: "Tensor") -> "Tensor":
    """Return the factors with 1 in place of 0, NaN and Inf, which dead channels give."""
    import torch

    return torch.where(factors.isfinite() & (factors > 0), factors, 1.0)
