"""MRD messages on sockets and in files, and the live feed: the only place that does I/O with peers."""
