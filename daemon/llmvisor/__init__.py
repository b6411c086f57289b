"""llmvisor's daemon: supervises one worker process per loaded model and serves them behind one port."""

__version__ = "0.1.0"
