"""`python -m ddpm_ref` is `ddpm-ref`."""

import sys

from ddpm_ref.cli import main

sys.exit(main())
