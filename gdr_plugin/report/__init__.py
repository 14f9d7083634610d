"""Pages and pictures of what was measured. Knows how to show numbers; nothing of how they are measured."""
