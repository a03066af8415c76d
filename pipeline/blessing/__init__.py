"""What a model must show before it is pushed: statistics, slices, robustness, calibration, time."""
