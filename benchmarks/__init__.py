"""What llmvisor costs and gives, beside its peers on the same machine in the same run.

Each figure is a command (`python -m benchmarks.decode`), prints JSON lines and takes `--quick` and `--rounds`;
`python -m benchmarks` runs them all. Ours and the peer take turns, so that a machine that slows down slows both.
"""
