"""Pages that a browser shows: what a run or a comparison found, in one file each."""
