"""What the adapters of several frameworks share: a reward for a trainer's process, templated text, the catalogue."""
