"""Many tasks: their files, which of them learn side by side, and what comes of each."""
