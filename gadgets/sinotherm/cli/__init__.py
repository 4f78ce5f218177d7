"""The commands; everything is put together here."""
