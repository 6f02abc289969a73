"""Who may use the relay: users, tokens, client certificates."""
