"""What everything stands on: sentences for the user, random draws by key, the machine, files that appear whole."""
