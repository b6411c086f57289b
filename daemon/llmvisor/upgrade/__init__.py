"""The daemon executes itself anew in the same process: its workers, its sockets and its clients stay.

What the next run needs passes through a file in memory (`state`); whether the next run can start at all is tried
before (`preflight`); when it may begin is decided in `upgrader`; `inherit` is what the next run begins with.
"""
