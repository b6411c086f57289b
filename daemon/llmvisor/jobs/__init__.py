"""Long operations that a person started: watched, cancelled, tried again, and gone on with after a restart."""
