"""Scoring rows and items: window by window, and one model after the other where both do not fit."""
