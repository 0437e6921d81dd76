"""Know a run before it is run: what the compiler makes of its step for a slice that need not be there."""
