"""`python -m llmctl`."""

import sys

from llmctl.main import main

sys.exit(main())
