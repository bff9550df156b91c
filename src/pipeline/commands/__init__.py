"""What can be asked for: a file for each ``task=``, sweeps, and the call from Python."""
