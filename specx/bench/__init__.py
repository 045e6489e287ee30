"""Measuring: which runs to make, what one run yields, and what many of them say. ``schema`` has
every record; ``runner`` runs a plan's cells and keeps a ``journal``, of which ``summary`` makes the
report. What is shown (``render``) and compared (``saved``) is made from that report alone."""
