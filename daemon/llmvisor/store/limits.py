"""Bounds of the store, and of what is written into it: see `llmvisor.limits`."""

store_open_seconds_max = 30.0
"""What the daemon waits for its store: opened, checked, brought to this version."""
store_answer_seconds_max = 30.0
"""What anybody waits for the store; a dead disk answers never."""
store_silent_seconds_max = 1.0
"""The same once it is known not to answer."""
store_close_seconds_max = 3.0
store_lock_seconds_max = 5.0
"""What a write waits for another process that has locked the file."""
store_lock_degraded_seconds_max = 0.2
"""The same once it is known to be locked, so that callers do not queue up."""
store_retry_seconds = 5.0
"""Between two attempts to write to a store that could not be written."""
store_queue_calls_max = 10_000
store_full_check_bytes_max = 64 * 1024 * 1024
"""A larger file is checked at the start without comparing its indexes with their tables."""
store_versions_ahead_max = 1000
"""A file that says it is newer by more is damaged."""
store_check_problems_max = 10
"""Lines of a check that are logged."""
store_damaged_files_kept_max = 5
store_copies_kept_max = 3
"""Of the file as it was before a newer version changed it."""
store_wal_bytes_max = 4 * 1024 * 1024
store_probe_bytes = 64 * 1024
"""Written to see whether the disk takes something again."""
registry_rows_max = 10_000
registry_searches_max = 1_000
load_measures_max = 10_000
load_measures_waiting_max = 1_000
"""Measures that are not written yet."""
load_peak_growth_ratio_min = 1.1
"""A worker's memory is noted again once it has grown by so much."""
usage_rows_max = 100_000
"""Single requests that are kept; older ones are summed up by day."""
usage_rows_slack = 1_000
"""That many more before they are."""
usage_day_rows_max = 200_000
usage_sums_max = 10_000
"""Rows of one answer."""
usage_buffer_rows_max = 10_000
"""Requests that have ended and are not written yet."""
usage_flush_seconds_max = 5.0
"""What whoever asks for the usage waits for the last requests to be written."""
usage_write_seconds = 1.0
"""Requests that ended within this are written together."""
