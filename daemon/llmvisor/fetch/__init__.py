"""Fetches models: a process of its own, `python -m llmvisor.fetch`, which the daemon starts for each job.

It may be killed at any moment: what it has of a file lies in the staging folder, and the next one goes on from there.
Its libraries (huggingface_hub and all it brings) never come into the daemon.
"""
