"""Every bound of the daemon, unit last. What a person may set stands in `config/tree.py`; these are the rest.

Those that the worker shares stand in `llmvisor_runtimes/limits.py`.
"""

# -- HTTP
keepalive_seconds = 15.0
"""Idle connections and half-sent headers are closed after this (aiohttp's own default is 3630 s)."""
body_seconds_max = 30.0
"""A request body has to arrive whole within this, plus the time of `body_bytes_per_second_min`."""
body_bytes_per_second_min = 64 * 1024
header_bytes_max = 16 * 1024
connections_max = 4096
heartbeat_seconds = 15.0
"""A comment line is sent on a stream that has been silent for this long."""
write_stall_seconds_max = 30.0
"""A client that takes nothing for this long loses its request."""
handler_cleanup_seconds = 2.0
"""What aiohttp waits for handlers at the end; it takes twice this."""

# -- requests
messages_max = 4096
prompts_max = 256
"""Prompts of one completions request."""
choices_max = 16
top_logprobs_max = 20
stop_strings_max = 16
stop_string_bytes_max = 1024
logit_bias_entries_max = 1024
model_name_chars_max = 256
request_id_chars_max = 128
template_kwargs_bytes_max = 16 * 1024

# -- streams between worker and client
stream_pause_deltas = 256
"""Deltas that wait for a slow client before its sequence is paused."""
stream_resume_deltas = 64
stream_deltas_max = 8192
"""A stream that still grows past this after the pause is cancelled."""

# -- supervision
hello_seconds_max = 30.0
tick_missed_max = 5
"""Ticks that may be missing in a row before an idle worker counts as hung."""
command_bytes_buffered_max = 256 * 1024 * 1024
abort_grace_seconds = 2.0
"""Between SIGABRT (a dump of a hung worker's stacks) and SIGKILL."""
close_grace_seconds = 10.0
"""Between the close frame and SIGTERM."""
terminate_grace_seconds = 5.0
kill_wait_seconds_max = 5.0
pipe_drain_seconds_max = 1.0
stable_seconds = 60.0
"""A worker that has served this long makes one earlier crash forgiven."""
worker_open_files_max = 1024
worker_oom_score_adj = 500
daemon_oom_score_adj = -500

# -- logs and events
log_lines_per_worker = 200
"""The last lines of a worker, kept for post-mortems."""
log_line_bytes_max = 16 * 1024
log_queue_records_max = 10_000
log_recent_records_max = 2_000
subscriber_queue_events_max = 1_000
jobs_ended_kept_max = 200
job_events_per_second_max = 10

# -- the control socket
socket_path_bytes_max = 103
"""The shortest of the platforms' limits (macOS)."""
config_file_bytes_max = 1024 * 1024
gguf_header_bytes_max = 256 * 1024 * 1024
