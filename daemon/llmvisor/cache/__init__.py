"""The response cache: what was answered once is not computed again."""
