"""A batch on its device."""

from dataclasses import dataclass

from torch import Tensor

from xlnet.model.layout import Layout


@dataclass(frozen=True)
class Inputs:
    """The tensors that the model and its loss read."""

    input_ids_T: Tensor
    segment_ids_T: Tensor
    layout: Layout
    labels_S: Tensor
    weights_S: Tensor
