"""The commands, a file a group: each adds its arguments, and calls functions of the package, imported when it runs."""
