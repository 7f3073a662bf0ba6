"""torch-fidelity's metrics on features that are computed already.

Every option is given and known; nothing is cached, pickled, printed or moved to a GPU behind the caller's back.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch_fidelity
from jaxtyping import Float64
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.defaults import DEFAULTS
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from benchmarks.records.catalogue import NEIGHBOURS

GIVEN = "vaebench-given-features"
KID_SUBSETS = 100
KID_LARGEST_SUBSET = 1000
SCORE_SPLITS = 10
OPTIONS: dict[str, Any] = {
    "feature_extractor": GIVEN,
    "cuda": False,
    "cache": False,
    "save_cpu_ram": True,  # no worker processes
    "verbose": False,
    "rng_seed": 2020,
    "samples_shuffle": True,
    "kid_subsets": KID_SUBSETS,
    "kid_kernel": "poly",
    "kid_kernel_poly_degree": 3,
    "kid_kernel_poly_coef0": 1,
    "prc_neighborhood": NEIGHBOURS,
    "prc_batch_size": 2000,
    "isc_splits": SCORE_SPLITS,
}


class Kernel(NamedTuple):
    """Mean and standard deviation of the kernel distance over random subsets, of so many images each."""

    mean: float
    std: float
    subset: int


class GivenFeatures(FeatureExtractorBase):
    """The identity: its images are features."""

    def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str]:
        """The only layer."""
        return ("given",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """The only layer, whatever the metric."""
        return "given"

    @staticmethod
    def can_be_compiled() -> bool:
        """There is nothing to compile."""
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        """One row; unused."""
        return torch.zeros(1, 1)

    def forward(self, input: Tensor) -> tuple[Tensor]:
        """The rows as they are."""
        return (input,)


class Rows(Dataset[Tensor]):
    """The rows of a matrix as a data set."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def __len__(self) -> int:
        return len(self.matrix)

    def __getitem__(self, index: int) -> Tensor:
        return self.matrix[index]


torch_fidelity.register_feature_extractor(GIVEN, GivenFeatures)


def fid(features: Float64[Tensor, "N D"], reference: Float64[Tensor, "M D"]) -> float:
    """torch-fidelity's Frechet distance."""
    found = _calculate(input1=Rows(features), input2=Rows(reference), batch_size=len(features), fid=True)
    return found[torch_fidelity.KEY_METRIC_FID]


def kid(features: Float64[Tensor, "N D"], reference: Float64[Tensor, "M D"]) -> Kernel:
    """The unbiased kernel distance with the cubic kernel."""
    subset = min(KID_LARGEST_SUBSET, len(features) // 2, len(reference) // 2)
    sides = {"input1": Rows(features), "input2": Rows(reference)}
    found = _calculate(**sides, batch_size=len(features), kid=True, kid_subset_size=subset)
    return Kernel(found[torch_fidelity.KEY_METRIC_KID_MEAN], found[torch_fidelity.KEY_METRIC_KID_STD], subset)


def precision_and_recall(features: Float64[Tensor, "N D"], reference: Float64[Tensor, "M D"]) -> tuple[float, float]:
    """Shares of `features` (generated) inside the manifold of `reference` (real), and the reverse."""
    found = _calculate(input1=Rows(features), input2=Rows(reference), batch_size=len(features), prc=True)
    return found[torch_fidelity.KEY_METRIC_PRECISION], found[torch_fidelity.KEY_METRIC_RECALL]


def inception_score(logits: Float64[Tensor, "N K"]) -> tuple[float, float]:
    """Mean and standard deviation of the inception score over 10 parts of the images."""
    found = _calculate(input1=Rows(logits), batch_size=len(logits), isc=True)
    return found[torch_fidelity.KEY_METRIC_ISC_MEAN], found[torch_fidelity.KEY_METRIC_ISC_STD]


def _calculate(**options: Any) -> dict[str, float]:
    """torch-fidelity's call, which ignores options it does not know: here an unknown one is an error."""
    options = OPTIONS | options
    ignored = sorted(set(options) - set(DEFAULTS))
    if ignored:
        raise ValueError(f"torch-fidelity {torch_fidelity.__version__} would ignore {', '.join(ignored)}")
    return torch_fidelity.calculate_metrics(**options)
