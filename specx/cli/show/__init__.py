"""Seeing the method work: ``--show``, ``--trace`` and ``specx trace``."""
