"""`python -m gdr_plugin` is `gdr`."""

from gdr_plugin.cli import main

main()
