"""What the daemon remembers: one SQLite file, one thread that writes it, and typed rows on top.

`store.Store` owns the file and the thread; `jobs`, `models`, `registry`, `usage` and `measures` are what others use.
A file that is damaged is set aside and a new one begun; one that cannot be used at the moment (full disk, lock, newer
version) costs what needs it, is told in `/health`, and is tried again.
"""
