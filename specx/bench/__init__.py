"""Measuring: which runs to make, what one run yields, and what many of them say.

``plan`` lists the cells, ``runner`` runs them and keeps a ``journal``, ``report`` turns samples
into one ``specx.bench/1`` object. What is shown (``views``) and compared (``saved``) is made from
that object alone. Nothing here knows a screen.
"""
