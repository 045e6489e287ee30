"""Measuring: which runs to make, what one run yields, and what many of them say.

``schema`` has every record from a run to the report. ``runner`` runs the cells of a plan and keeps
a ``journal``, ``summary`` makes the report of it. What is shown (``render``) and compared
(``saved``) is made from that report alone. Nothing here knows a screen.
"""
