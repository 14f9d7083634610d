"""Contracts: all that the author of a plugin reads. Types, errors, hooks, and what a model, router or selector is."""
