"""From log-probs to numbers, without models: reduction, steps, rounding noise, statistics with intervals."""
