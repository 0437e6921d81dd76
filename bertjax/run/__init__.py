"""The bookkeeping of one run: work folder, metrics, writers, processes."""
