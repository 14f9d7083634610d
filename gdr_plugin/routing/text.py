"""The part of a prompt that routers read: the user's turns."""

from __future__ import annotations

from gdr_plugin.api.types import Conversation

__all__ = ["all_user_turns", "last_user_turn"]


def last_user_turn(prompt: Conversation) -> str:
    """The text of the last user turn; empty when there is none."""
    return next((message.content for message in reversed(prompt) if message.role == "user"), "")


def all_user_turns(prompt: Conversation) -> str:
    """The texts of all user turns, one below the other; empty when there is none."""
    return "\n".join(message.content for message in prompt if message.role == "user")
