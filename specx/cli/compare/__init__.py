"""``specx compare``: runs of one document side by side, or two saved benches."""
