"""Bounds of installed models, and of searches for others: see `llmvisor.limits`."""

# -- installed models
installed_name_chars_max = 100
revision_chars_max = 128
inner_path_chars_max = 1024
"""Of a file's name within its model's folder."""
manifest_bytes_max = 4 * 1024 * 1024
installed_wait_seconds_max = 30.0
"""What a request waits for the list of installed models after a start, where only that can tell its model."""
library_close_seconds_max = 10.0
"""What the end of the daemon waits for files that are being removed."""
installed_slice_models = 250
"""Installed models that are taken in at a start before others get their turn."""
remove_wait_seconds_max = 20.0
"""What the removal of a model waits for its worker's end."""

# -- registries
search_query_chars_max = 256
search_results_max = 100
search_keep_seconds = 3600.0
"""What a registry has found is answered from the store for this long."""
searches_at_once_max = 4
"""Each is a process."""
searches_pending_max = 16
"""Of different words; the same ones are asked for once."""
search_seconds_max = 50.0
