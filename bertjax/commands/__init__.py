"""The commands, one file for each group. Each adds its arguments and calls functions that are imported when it runs."""
