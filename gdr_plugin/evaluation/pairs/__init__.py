"""Which two of N models make the best reward: what `gdr pairs` does.

In this package a pair is a pair of models. `models` says which models there are, `scoring` asks each of them once,
`matrix` and `correlation` turn log-probs into numbers, `choice` says which model pair to use, `report` and `page` show
it, and `run` knows the order. No module is imported here.
"""
