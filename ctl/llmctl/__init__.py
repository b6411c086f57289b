"""llmctl: manages a running llmvisor over its Unix socket."""
