"""Slow obvious versions of what encoders share."""

import math

import pytest
import torch


def cubic_matrix(size, target):
    """(target, size) weights of one-dimensional cubic interpolation (a = -0.75), half-pixel centres, clamped ends."""
    weights, a = torch.zeros(target, size, dtype=torch.float64), -0.75
    for row in range(target):
        place = (row + 0.5) * size / target - 0.5
        for tap in range(math.floor(place) - 1, math.floor(place) + 3):
            d = abs(place - tap)
            if d <= 1:
                weight = (a + 2) * d**3 - (a + 3) * d**2 + 1
            else:
                weight = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
            weights[row, min(max(tap, 0), size - 1)] += weight
    return weights


@pytest.fixture(scope="session")
def slow_positions():
    """``slow_positions((P + g², C), (h, w))``: the first P rows (1), and the others interpolated to h x w."""

    def resize(positions, grid, prefix=1):
        side = math.isqrt(len(positions) - prefix)
        if tuple(grid) == (side, side):
            return positions
        rows, columns = cubic_matrix(side, grid[0]), cubic_matrix(side, grid[1])
        square = positions[prefix:].double().reshape(side, side, -1)
        resized = torch.einsum("ya,xb,abc->yxc", rows, columns, square)
        return torch.cat([positions[:prefix], resized.flatten(0, 1).to(positions)])

    return resize
