"""What items are worth: when one is right, accuracy with intervals, published scores, calibration."""
