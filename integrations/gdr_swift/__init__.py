"""ms-swift: the guided density ratio as a reward function of its GRPO, by `--external_plugins $(gdr path swift reward)`.

Importing this package imports nothing else.
"""
