"""From a finished round to a folder that runs on the board: export, int8, packing, checks, proof on ARM."""
