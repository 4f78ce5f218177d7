"""MRD messages on sockets and in files, and the live feed: the only place that does I/O with peers."""

import warnings

# Importing ismrmrd resets the warning filters of the whole process; here they are put back.
with warnings.catch_warnings():
    import ismrmrd as _ismrmrd  # noqa: F401
