"""`python -m trl_bonesoup`: the command `bonesoup`, where its script is not on the path."""

import sys

from trl_bonesoup.cli import main

if __name__ == "__main__":
    sys.exit(main())
