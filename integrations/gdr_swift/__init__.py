"""ms-swift: the guided density ratio in its GRPO, by `--external_plugins $(gdr path swift reward)`.

Importing this package imports nothing else.
"""
