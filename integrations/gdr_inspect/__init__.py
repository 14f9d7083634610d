"""inspect_ai: the guided density ratio as a scorer, `gdr_inspect/gdr`.

inspect_ai finds it by the entry point `inspect_ai`. Importing this package imports nothing else.
"""
