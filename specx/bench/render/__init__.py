"""Showing a bench: everything here is made from one ``Bench`` and nothing else.

``numbers`` has the words and numbers, ``tables`` the tables, ``markdown`` and ``html`` the reports,
``flat`` CSV and JSON lines, ``figure`` and ``terminal_plot`` the plots. Nothing knows a screen.
"""
