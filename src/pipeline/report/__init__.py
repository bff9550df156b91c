"""What a person reads of rounds: tables, pictures, the live display, sheets, comparisons."""
