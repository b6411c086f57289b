"""Which models are in memory: what they take, who gets some, who makes room, and what is done when it runs low."""
