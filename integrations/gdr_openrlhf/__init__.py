"""OpenRLHF: rewards for its HTTP client, its `reward_func` files and its agents.

`routes` is the dialect of `gdr serve`; `reward_func.py` and `agent.py` are files whose paths OpenRLHF takes
(`gdr path openrlhf` prints them). Importing this package imports nothing else.
"""
