"""Settings, from text to frozen dataclasses; and which of them change numbers."""
