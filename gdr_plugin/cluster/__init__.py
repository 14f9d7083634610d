"""Windows of work on a cluster: pools of actors, and how a window goes through them."""
