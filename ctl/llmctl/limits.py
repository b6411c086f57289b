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
search_seconds_max = 60.0
"""Registries are asked over the network."""
models_shown_max = 50
"""On a terminal, unless more are asked for."""
page_items_max = 1000
"""The daemon's own bound on a page of a list."""
bench_requests_max = 256
"""At once; each has a thread of its own."""
completion_seconds_max = 1.0
"""A person has pressed TAB and waits."""
completion_items_max = 1000
watch_window_seconds = 10.0
"""After this `jobs watch` asks how all jobs are, whatever it was told meanwhile."""
streams_max = 3
"""Of one job's events, where they break off although it runs on."""
dying_daemon_tries_max = 20
"""`poll_seconds` apart."""
start_seconds_max = 60.0
"""Until a daemon in the background is ready."""
last_words_lines_max = 10
"""Of a daemon that could not start."""
service_command_seconds_max = 150.0
"""For one command of a service manager: a stop waits until the streams are done."""
key_seconds_max = 3_200_000_000
"""About a century: longer than any key lasts."""
reload_seconds_max = 60.0
"""For the daemon to read its configuration and make it hold; new workers load after that."""
reload_wait_seconds_max = 900.0
"""For models to be replaced."""
key_file_bytes_max = 4096
