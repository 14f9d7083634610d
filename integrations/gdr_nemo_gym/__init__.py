"""NeMo-Gym: the guided density ratio as a resources server; `gdr path nemo-gym` prints the folder to copy.

Importing this package imports nothing else.
"""
