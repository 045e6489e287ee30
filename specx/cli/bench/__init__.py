"""``specx bench``: options, progress, tables on a terminal, exports."""
