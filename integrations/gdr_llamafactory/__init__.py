"""LLaMA-Factory: the guided density ratio in its PPO, as `reward_model_type: api`.

All of it is a dialect of `gdr serve` (`routes`); importing this package imports nothing else.
"""
