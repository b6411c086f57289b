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
control_connections_max = 256
"""On the control socket, beside those of TCP."""
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
stream_deltas_max = 8192
"""A stream that still grows past this after the pause is cancelled."""

# -- supervision
command_bytes_buffered_max = 256 * 1024 * 1024
abort_grace_seconds = 2.0
"""Between SIGABRT (a dump of a hung worker's stacks) and SIGKILL."""
close_grace_seconds = 10.0
"""Between the close frame and SIGTERM."""
terminate_grace_seconds = 5.0
hang_up_grace_seconds = 5.0
"""A worker that has closed its report pipe has this long to end by itself."""
kill_wait_seconds_max = 5.0
pipe_drain_seconds_max = 1.0
stable_seconds = 60.0
"""A worker that has served this long makes one earlier crash forgiven."""
worker_open_files_max = 1024
worker_oom_score_adj = 500
daemon_oom_score_adj = -500

postmortems_kept_max = 8
"""Of one model; the oldest are let go."""
postmortem_frames_sent = 16
postmortem_frames_received = 32
postmortem_ticks = 60
"""Seconds of the memory curve."""
postmortem_lines = 40
postmortem_line_chars_max = 500
poison_cleared_tokens = 32
"""What a request under suspicion brings, alone in a worker, before the others are let in again."""
poison_probation_seconds = 60.0
"""A request under suspicion that does no harm for so long is let be."""
poison_in_a_row_max = 8
"""Requests blamed for crashes without anybody being served in between; after that it is the model's fault."""
poison_quarantine_seconds = 600.0
"""Requests like one that was poison are refused for so long."""
poison_quarantined_max = 1024
"""Of one model; the oldest are let go."""

# -- logs and events
last_words_chars_max = 300
"""Of a worker's last line, where it stands in an error message."""
log_linger_seconds = 0.02
"""A line is written this much later at most, together with those that came meanwhile."""
log_lines_per_worker = 200
"""The last lines of a worker, kept for post-mortems."""
log_line_bytes_max = 16 * 1024
log_field_names_kept_max = 256
"""Names of fields of which it is remembered whether they hold a secret."""
log_queue_records_max = 10_000
log_recent_records_max = 2_000
subscriber_queue_events_max = 1_000
jobs_ended_kept_max = 200
job_flush_poll_seconds = 0.01
job_events_per_second_max = 10

# -- the control socket
socket_path_bytes_max = 103
"""The shortest of the platforms' limits (macOS)."""
config_file_bytes_max = 1024 * 1024
gguf_header_bytes_max = 256 * 1024 * 1024

# -- upgrades in place
upgrade_state_bytes_max = 256 * 1024 * 1024
upgrade_poll_seconds = 0.02
"""How often it is looked whether everything has come to rest."""
upgrade_hold_seconds = 1.0
"""For so long new requests are held back at a time while longer ones run, and are let in for at least as long."""
upgrade_preflight_seconds_max = 60.0
upgrade_last_seconds_max = 10.0
"""For those who follow logs and events, and jobs that are stopped, once all requests have ended."""
upgrade_log_flush_seconds_max = 1.0

# -- the lock
lock_holder_reads_max = 20
"""Looks into the lock file of another daemon, which writes its pid just after it has locked."""
lock_holder_read_interval_seconds = 0.05

# -- the log
log_batch_records_max = 256
"""Records that go out in one write."""
log_close_seconds_max = 3.0
"""What the writers have to empty their queues at the end."""
log_file_retry_seconds = 30.0
"""Between two attempts at a log file that cannot be written."""
log_sweep_seconds = 3600.0
"""Between two looks for rotated log files that are too old."""

# -- the pipes of a worker
report_read_bytes = 64 * 1024
"""One read of a report pipe, and with it what one wake-up of the loop handles."""
report_pipe_bytes = 1024 * 1024
"""Asked of the kernel for a report pipe, so that a busy daemon does not hold up a worker's step."""
command_buffers_per_write_max = 64
log_read_bytes = 64 * 1024
log_flood_pause_seconds = 0.02
"""A worker whose logs fill a whole read is read again only after this."""
log_lines_burst_max = 2_000
"""Lines of one worker that are logged at once; the surplus is counted and left out."""
log_lines_per_second_max = 200
journal_entry_bytes_max = 4 * 1024
process_poll_seconds = 0.02
"""How often a process is looked at where no pidfd tells of its end."""

# -- configuration
config_depth_max = 32
"""Levels of nesting in a configuration file."""
config_nodes_max = 20_000
"""Values in a configuration file, each alias counted as all that it stands for."""
dotenv_file_bytes_max = 256 * 1024
models_configured_max = 256
problem_chars_max = 1000
"""The length of one problem's line."""
option_name_chars_max = 128
option_bytes_max = 64 * 1024
"""One value under `options`, as JSON."""

# -- HTTP: bodies and answers
lingering_seconds = 2.0
"""How long the rest of a refused request's body is read and thrown away, so that the client gets its answer."""
header_lines_max = 128
send_buffer_bytes = 128 * 1024
"""Of the kernel, for one connection. Linux doubles it for its own bookkeeping."""
retry_after_seconds = 1.0
"""What clients are told to wait where nothing better is known."""
cors_preflight_seconds = 600
"""How long a browser may remember a preflight's answer."""
prompts_in_flight_max = 16
"""Prompts of one completions request that are generated at the same time."""
tokens_max = 2**31 - 1
"""The highest token id, and the most tokens that can be asked for."""
seed_max = 2**32 - 2 - choices_max
"""Seeds are folded into the samplers' 32 bits, the highest of which means a random one; choice i adds i."""
prompt_tokens_max = 4 * 1024 * 1024
"""Ids of one tokenized prompt."""
content_parts_max = 256
"""Parts of one message's content."""
keep_alive_seconds_max = 10 * 366 * 86_400.0
reasoning_effort_chars_max = 32
dry_breakers_max = 16
dry_breaker_chars_max = 64
list_items_max = 1_000
"""Objects in one page of a list."""

# -- the daemon's own life
listen_backlog = 512
open_files_wanted = 8192
open_files_reserved = 512
"""Descriptors kept for workers, logs and files; connections get the rest."""
idle_check_seconds = 5.0
"""How often the daemon looks whether it has been without a request for `shutdown_timeout`."""
idle_retry_seconds = 0.5
"""Until the next look, where somebody asked just as it was about to end."""
idle_turns = 3
"""Of the loop, in which what was just accepted is read."""
end_seconds_max = 30.0
"""What the end takes after `server.drain_timeout`, as the service manager is told: workers, files, the store."""
notify_seconds_max = 1.0
"""What the service manager may take for a message that matters."""
notify_status_chars_max = 512
notify_status_seconds = 2.0
"""Between two looks at what the service manager is to show."""
supervision_late_seconds_max = 10.0
"""A runtime whose alarm is this late is supervised no longer."""
gguf_metadata_entries_max = 16 * 1024
gguf_tensors_max = 128 * 1024
gguf_key_bytes_max = 1024
gguf_text_bytes_max = 1024 * 1024
"""Of a name or a chat template. Longer texts, and all that is not needed, are skipped."""
gguf_array_kept_max = 1024
"""Elements of an array of numbers by layer."""
gguf_read_bytes = 1024 * 1024
"""Read at once: all that a header of any size takes in memory, beside what is kept."""

# -- what the scheduler decides
suspend_gap_seconds = 30.0
"""A deadline for idleness that is missed by more means that the machine slept."""
watch_late_seconds = 1.0
"""A look at a worker's progress that comes this late means that the daemon itself was held up."""
loading_retry_seconds = 5.0
"""What a client is told to wait whose model was still loading."""
memory_retry_seconds = 10.0
"""What a client is told to wait whose model had no room."""
memory_come_back_seconds = 20.0
"""So long a model that makes room for those who were told to wait goes on doing so: they may come back for it."""

# -- memory
eviction_candidates_exact_max = 10
"""Of so many idle models the cheapest that make room together are found exactly; of more, nearly."""
arrivals_half_life_seconds = 600.0
"""A request counts half as much for how often its model is wanted after this."""
memory_measured_margin = 1.05
"""A worker may take so much more than the most that one before it has taken."""
memory_look_seconds = 1.0
"""Between two looks at the memory that is free."""
machine_memory_wait_seconds = 10.0
"""What a load waits for memory that other programs have."""
memory_relief_seconds = 2.5
"""What was done about low memory has this long to show: workers tell of theirs each second."""
memory_trim_seconds = 30.0
"""Between two requests to a worker to give up its caches."""
memory_excess_ratio = 0.1
"""A worker is above its estimate once it is by this part of it,"""
memory_excess_bytes_min = 256 * 1024 * 1024
"""and by so much: an interpreter and its libraries stand in no model's file."""
load_seconds_guess = 0.5
load_bytes_per_second_guess = 1e9
"""What a load is taken for that was never measured."""
retry_after_seconds_max = 600.0
"""However long a queue is, a client is told to come back by then."""
priority_passes_max = 16
"""Requests of higher priority that one of a lower may be passed over for, in a row."""
turn_share_min = 0.25
turn_share_max = 8.0
"""What a request that was shorter or longer than the others counts as, in turns of its client."""
places_changes_share = 64
"""A queue's order is found anew once a share of one in so many has changed: exactly where fewer wait."""
clients_remembered_max = 4096
"""Clients of one model that have had more than their share, and wait for nothing at the moment."""
request_timeout_seconds_max = 7 * 86_400.0
"""The longest `X-Request-Timeout`."""
request_timeout_grace_seconds = 0.5
"""After its deadline a request is ended that the scheduler has not ended, whatever holds it up."""

# -- what an answer has to be, tools and media
grammar_bytes_max = 256 * 1024
"""A JSON Schema, a regular expression, a grammar, or the texts of a choice, together."""
grammar_choices_max = 1024
"""Texts that an answer is chosen from."""
schema_depth_max = 64
"""Levels of nesting in a JSON Schema."""
tools_max = 128
tools_bytes_max = 512 * 1024
"""Descriptions and schemas of all tools of a request."""
tool_name_chars_max = 64
tool_calls_max = 128
"""Calls in one message of a conversation."""
tool_call_id_chars_max = 256
media_parts_max = 64
"""Images and sounds of one conversation."""
media_bytes_max = 16 * 1024 * 1024
"""One image or sound, decoded."""
media_fetches_max = 16
"""URLs of one conversation that are fetched."""
media_fetches_at_once_max = 4
"""Of these."""
media_fetch_seconds_max = 20.0
"""All of these together."""
media_redirects_max = 3
media_url_chars_max = 4096
media_connections_max = 32
"""To the hosts of images and sounds, of all requests together."""
image_pixels_max = 64 * 1024 * 1024
"""An image says in its first bytes how large it becomes; larger ones are never unpacked."""
images_pixels_max = 128 * 1024 * 1024
"""Those of one conversation together: they are unpacked at once, to three bytes a pixel."""
adapters_max = 64
adapter_name_chars_max = 128

# -- embeddings and scores
embedding_inputs_max = 2048
"""Texts of one embeddings request, as OpenAI has it."""
embedding_bulk_inputs_min = 33
"""A request of so many texts or pairs is bulk: those of a few texts go ahead of it."""
embeddings_bytes_max = 64 * 1024 * 1024
"""Vectors of one answer, as the worker sends them; as JSON they are five times as long."""
embedding_dimensions_max = 65_536
answer_slice_floats = 32 * 1024
"""Numbers of an answer that are written as JSON in one go, before others get their turn."""
rerank_documents_max = 2048
rerank_pairs_max = 8192
"""Pairs of one request once its long documents are cut into chunks."""
rerank_pairs_chars_max = 32 * 1024 * 1024
"""All texts of these pairs, a query counted with each of its documents."""
rerank_chunks_max = 256
"""Chunks of one document."""
client_name_chars_max = 128
"""Of the name that a request is fairly treated under."""

probe_seconds_max = 120.0
"""Importing a backend's engine, to see whether it can be used; torch from a cold disk takes a while."""
model_folder_files_max = 4096
"""Files that are looked at in a model's folder."""
model_folder_depth_max = 3
"""Levels of folders below it."""
model_folder_json_bytes_max = 1024 * 1024
"""A description in a model's folder; a longer one says nothing."""

cache_bytes_max = 256 * 1024 * 1024
"""Answers in the response cache, together."""

cache_answer_bytes_max = 8 * 1024 * 1024
"""A longer answer is not kept."""

option_path_chars_max = 4096
"""A longer text in a model's options is no path (it may be a chat template)."""

jpeg_segments_max = 4096
"""Segments of a JPEG before its frame; real files have dozens."""

# -- jobs
jobs_running_max = 64
"""At the same time, those that fetch counted as well; `downloads.jobs` bounds these."""
jobs_waiting_max = 1_000
job_retries_max = 8
"""Tries in a row that brought nothing before a job is given up."""
job_crashes_max = 3
"""Ends of its fetch process without a word, in a row."""
job_backoff_seconds = 2.0
"""What the first retry waits at most; each further one twice as long."""
job_backoff_seconds_max = 300.0
job_retry_after_seconds_max = 3600.0
"""A server that wants more is asked again after this."""
job_events_kept_max = 64
"""Of one job, for a client that comes back."""
job_saved_seconds = 5.0
"""Between two writes of a job that has only got further."""
jobs_open_seconds_max = 15.0
"""What a request waits for the jobs of an earlier daemon, which are read once the store is open."""
job_save_retry_seconds = 5.0
"""Between two attempts at a store that cannot be written."""
jobs_close_seconds_max = 10.0
idempotency_key_chars_max = 255
source_chars_max = 1024

# -- the fetch process
fetch_line_bytes_max = 16 * 1024 * 1024
"""Of one report: a folder's files, a page of models."""
fetch_silent_seconds_max = 900.0
"""A fetch process that says nothing for so long is ended; it reports as it goes on."""
fetch_read_bytes = 64 * 1024

# -- API keys
keys_max = 10_000
keys_file_bytes_max = 16 * 1024 * 1024
key_file_bytes_max = 64 * 1024
"""A file of `server.api_keys`."""
key_chars_min = 16
"""Of a key in the configuration, which somebody else may have made."""
key_chars_max = 512
keys_read_seconds_max = 5.0
"""What the start waits for the file of the keys; without it no key that was made is taken."""
keys_retry_seconds = 5.0
"""Between two attempts at a file that could not be read."""

# -- configuration, reloaded

config_settle_seconds = 0.3
"""Nothing has changed for so long: whoever writes the configuration has finished."""
config_settle_seconds_max = 10.0
"""It is read all the same, although somebody goes on writing."""
config_look_seconds = 2.0
"""How often its files are looked at where nobody tells of changes."""
config_step_ms = 250
"""How often watchfiles' thread wakes to ask for changes, and to hear that it is to end."""
listener_overlap_seconds = 0.1
"""An address that is left accepts for so long beside the new one."""
reload_close_seconds_max = 5.0
"""What the daemon's end waits for a reload that is under way."""
