"""Where a class's score comes from: integrated gradients and Grad-CAM, by PAIR's `saliency`.

Integrated gradients (Sundararajan et al., ICML 2017, arXiv:1703.01365) add up to the difference of
the score between the image and a black one. Grad-CAM (Selvaraju et al., ICCV 2017,
arXiv:1610.02391) weighs the last feature map by its gradients: here each place by its own, as
HiResCAM does (Draelos and Carin 2020, arXiv:2011.08891), and not each channel by the mean of all
places. In networks that average the map the two are the same; in those that flatten it, where a
channel may speak for a class in one place and against it in another, the mean says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from saliency.core import base, grad_cam, integrated_gradients

from pipeline.explain.network import FeatureMap, Network

Floats = npt.NDArray[np.float32]

# Steps of the integral that go through the network together.
_BATCH: Final = 16
# What is brighter than this share of the pixels is as bright as it gets: single pixels would
# otherwise make all the others dark.
_CLIPPED: Final = 99.0

NO_MAP: Final = (
    "The network has no feature map behind a convolution that could say where it looked "
    "(at least 4 x 4 places)."
)
NO_HEAT: Final = "No place of the feature map speaks for this class."


@dataclass(frozen=True)
class Attributed:
    """Integrated gradients of one image.

    Attributes:
      values: float32 [side, side, channels]; their sum is about `difference`.
      difference: of the score, between the image and the baseline.
    """

    values: Floats
    difference: float

    @property
    def gap(self) -> float:
        """How far the sum of the values is from what it should be, as a share of that."""
        return abs(float(self.values.sum()) - self.difference) / max(abs(self.difference), 1e-6)


def integrated(
    network: Network, pixels: Floats, baseline: Floats, target: int, steps: int
) -> Attributed:
    """Returns how much each pixel adds to a class's score.

    Args:
      network: the model.
      pixels: float32 [side, side, channels], behind the transform graph.
      baseline: what counts as nothing there, of the same shape: black.
      target: the class's number.
      steps: of the integral from the baseline to the image.
    """

    def answer(batch: Floats, call_model_args: Any, expected_keys: Any) -> dict[str, Floats]:
        return {base.INPUT_OUTPUT_GRADIENTS: network.gradients(batch, target)}

    # The library takes the mean over points from end to end, both ends as heavy as the others: at
    # black a ReLU has no slope at all. From the middle of the first step to that of the last, the
    # same mean is the midpoint rule.
    half = (pixels - baseline) / (2 * steps)
    values = integrated_gradients.IntegratedGradients().GetMask(
        pixels - half, answer, x_baseline=baseline + half, x_steps=steps, batch_size=_BATCH
    )
    values = values * (steps / (steps - 1))  # it multiplied by the way between those middles
    scores = np.asarray(network.scores(np.stack([pixels, baseline])))[:, target]
    return Attributed(np.asarray(values, np.float32), float(scores[0] - scores[1]))


def brightness(values: Floats) -> Floats:
    """Returns attributions as one map to look at: float32 [side, side], 0 to 1.

    The channels' absolute values are added up, so that what speaks against the class shows too.
    """
    strength = np.abs(values).sum(axis=2)
    low, high = float(strength.min()), float(np.percentile(strength, _CLIPPED))
    return np.clip((strength - low) / max(high - low, 1e-12), 0.0, 1.0).astype(np.float32)


def heat(found: FeatureMap | None, pixels: Floats) -> Floats | str:
    """Returns Grad-CAM's map, float32 [side, side] from 0 to 1, or why there is none.

    Args:
      found: of `Network.feature_map`.
      pixels: float32 [side, side, channels], of the same image.
    """
    if found is None:
        return NO_MAP

    def answer(batch: Floats, call_model_args: Any, expected_keys: Any) -> dict[str, Floats]:
        weighed = (found.values * found.gradients).sum(axis=-1, keepdims=True)
        # As one channel that counts once; the library drops what speaks against, and enlarges.
        return {
            base.CONVOLUTION_LAYER_VALUES: weighed,
            base.CONVOLUTION_OUTPUT_GRADIENTS: np.ones_like(weighed),
        }

    mask = grad_cam.GradCam().GetMask(pixels, answer, should_resize=True, three_dims=False)
    return np.asarray(mask, np.float32) if mask.max() > 0 else NO_HEAT
