"""`python -P -m llmvisor_runtimes BACKEND --read-fd N --write-fd M --parent-pid PID …`: one worker process."""

import sys

from llmvisor_runtimes import parent_death

if __name__ == "__main__":
    # Before the imports below: a daemon that dies while this process starts must leave nothing behind.
    parent_death.die_with_parent()

    from llmvisor_runtimes.process import main

    sys.exit(main(sys.argv[1:]))
