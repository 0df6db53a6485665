"""`python -m training`: the `streamgen` command, for torchrun's `-m`."""

from streamgen.cli import main

main(prog_name="streamgen")
