"""Every bound of the worker side, unit last. The daemon's own stand in `llmvisor/limits.py`."""

frame_bytes_max = 64 * 1024 * 1024
"""A longer frame is a protocol violation, in both directions."""

tick_interval_seconds = 1.0
"""How often a worker reports its progress."""

tokenize_text_bytes_max = 16 * 1024 * 1024
"""The longest text that one tokenize call takes."""

template_output_bytes_max = 8 * 1024 * 1024
"""The longest prompt that a chat template may render to."""

template_seconds_max = 5.0
"""A chat template that renders for longer is stopped."""

stop_strings_max = 16
"""Stop strings of one request."""

choices_max = 16
"""`n` of one request."""

top_logprobs_max = 20
"""Alternatives reported for each token."""
