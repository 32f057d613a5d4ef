"""Pages that people look at: what a run or a study came to, in one HTML file."""
