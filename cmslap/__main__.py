import sys

from cmslap.cli import main

sys.exit(main())
