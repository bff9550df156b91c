"""What runs on the board: ``run.py``, alone there; what the package shares with it stands in it."""
