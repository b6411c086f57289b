"""Worker processes: started, spoken to, watched, ended and reaped, and what is kept of their crashes."""
