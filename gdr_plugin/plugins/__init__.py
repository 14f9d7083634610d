"""Plugins: load them, check them, collect what they register."""
