"""Conversations as token ids, and rendered prompts as conversations again: templates and tokenizers, no weights."""
