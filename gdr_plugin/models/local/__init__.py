"""Models in this process, through transformers: files, weights, planner, forward and head apart."""
