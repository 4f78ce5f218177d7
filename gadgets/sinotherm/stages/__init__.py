"""One module a stage: each exports ``Settings`` and ``stage(items, scan, settings)``."""
