"""Colours as the trainings vary them: stains in optical density, and brightness."""

from __future__ import annotations

import numpy as np

__all__ = ["HED_FROM_RGB", "LUMA", "RGB_FROM_HED"]

HED_FROM_RGB = np.linalg.inv(np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]]))
"""`(3, 3)`, for `densities @ matrix`: optical densities of red, green and blue unmixed into haematoxylin, eosin and
residual (Ruifrok and Johnston 2001)."""

RGB_FROM_HED = np.linalg.inv(HED_FROM_RGB)
"""The way back."""

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in brightness (ITU-R BT.601)."""
