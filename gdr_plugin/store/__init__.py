"""The log-prob store: caches log-probs across this, later and concurrent runs."""
