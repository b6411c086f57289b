"""`python -P -m llmvisor_runtimes.confinement`: confines itself, and prints what came of it as JSON (`Confined`)."""

import msgspec

from llmvisor_runtimes.confinement import Wanted, confine

if __name__ == "__main__":
    print(msgspec.json.encode(confine(Wanted())).decode(), flush=True)
