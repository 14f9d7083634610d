"""The page of `gdr explain`: where each response's reward comes from, token by token."""
