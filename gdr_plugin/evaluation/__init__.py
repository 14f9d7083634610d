"""Measuring a reward on preference data: accuracy, calibration, length bias, ablations, model pairs.

`run` is the job behind `gdr evaluate`, `measures` says when an item is right and computes the measures, `summary` puts
them together; `ablations`, `controllability` and `pairs` (of models) are jobs of their own. No module is imported here.
"""
