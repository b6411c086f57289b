"""Every bound of the fetch process, unit last. Those that the daemon shares stand in `llmvisor/limits.py`."""

fetch_chunk_bytes = 1024 * 1024
"""The most that is read and written at once."""
fetch_chunk_bytes_min = 4096
fetch_spare_bytes = 64 * 1024 * 1024
"""Free disk space that is left beside what a fetch takes."""
fetch_piece_bytes = 32 * 1024 * 1024
"""The most that one request of a large file asks for, where several connections share it."""
fetch_piece_bytes_min = 4 * 1024 * 1024
"""A smaller piece is more waiting than fetching."""
fetch_connect_seconds_max = 20.0
fetch_silence_seconds_max = 60.0
"""A server that sends nothing for so long has gone."""
fetch_redirects_max = 10
fetch_tries_max = 6
"""Failures of one connection in a row; the job that wanted the model tries again later."""
fetch_backoff_seconds = 0.5
"""The bound of the first random wait; each further one is twice as long."""
fetch_backoff_seconds_max = 20.0
fetch_retry_after_seconds_max = 30.0
"""A server that wants to be left alone for longer than this ends the fetch, and the job waits."""
fetch_progress_bytes_min = 256 * 1024
"""Bytes after which a connection's earlier failures are forgotten."""
fetch_restarts_max = 2
"""A file that changes while it is fetched is begun again so often."""
fetch_save_seconds = 0.1
"""Between two notes of how far a file is."""
fetch_sync_seconds = 5.0
"""Between two syncs of what is written: a power cut takes no more than this."""
fetch_state_bytes_max = 1024 * 1024
fetch_progress_seconds = 0.125
"""Between two lines of progress: a little more than the daemon's own bound, so that it drops none of them."""
fetch_heartbeat_seconds = 1.0
"""Between two words while another program fetches."""
fetch_request_bytes_max = 1024 * 1024
"""The line that the daemon sends."""
fetch_end_seconds_max = 3.0
"""For a fetch to note how far it is once it has been told to end."""
fetch_path_chars_max = 1024
fetch_path_parts_max = 8
fetch_name_bytes_max = 200
fetch_files_max = 4096
"""Of one model."""
fetch_index_seconds_max = 120.0
"""For pip to find a package in its index."""
fetch_helper_end_seconds = 1.0
"""For pip to remove its temporary files."""
fetch_report_bytes_max = 16 * 1024 * 1024
"""What pip says of it."""
registry_seconds_max = 30.0
"""One question to a hub or a registry: what it lists, what it finds."""
registry_answer_bytes_max = 16 * 1024 * 1024
repository_files_max = 100_000
model_file_bytes_max = 16 * 1024**4
"""What a registry may say that one file has."""
git_blob_bytes_max = 32 * 1024 * 1024
"""Files outside LFS are checked by git's checksum up to this."""
ollama_text_bytes_max = 1024 * 1024
"""A template, a system message, parameters or a licence in Ollama's registry."""
ollama_stops_max = 16
ollama_stop_chars_max = 256
fetch_memory_bytes_max = 2 * 1024**3
"""Of the process's own: a listing that a library reads whole must not take the machine's."""
