"""Every bound of llmctl, unit last."""

answer_seconds_max = 30.0
"""For an answer that needs no waiting; `--timeout` overrides it."""
generation_silence_seconds_max = 120.0
"""The daemon sends a comment every 15 s while a model loads or a prompt is long: longer silence is a hang."""
generation_seconds_max = 3600.0
"""For an answer that comes whole (`run --json`)."""
answer_bytes_max = 64 * 1024 * 1024
event_bytes_max = 16 * 1024 * 1024
redraw_seconds_min = 1.0
redraw_seconds_max = 2.0
"""`status --watch` asks again after this even when no event came: speeds and countdowns make none."""
plain_progress_seconds_min = 1.0
"""Between two progress lines where no bar can be drawn."""
poll_seconds = 0.1
history_lines_max = 1000
prompt_bytes_max = 16 * 1024 * 1024
"""Of standard input; the daemon's own bound on bodies is lower by default."""
probe_seconds_max = 60.0
"""For one program that `doctor` runs; importing a large engine from a cold disk takes long."""
disk_free_bytes_min = 1024**3
memory_free_bytes_min = 512 * 1024**2
"""What the starter model with its context needs, and some room."""

backends_seconds_max = 600.0
"""Importing every backend's engine, one after the other."""
