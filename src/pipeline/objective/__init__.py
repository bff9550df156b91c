"""What a network is trained for: its loss, its metrics, and the one figure that choices are made by."""
