"""Whether a reward prefers what its guidance asks for: what `gdr controllability` does.

`prompts` reads the data, `measure` scores and counts, `report` shows it. No module is imported here.
"""
