"""Model backends: everything that turns conversations into token ids and token ids into log-probs."""
