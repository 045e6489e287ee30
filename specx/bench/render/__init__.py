"""Showing a bench: everything here is made from one ``specx.bench/1`` object and nothing else.

``wording`` has the words and numbers, ``tables`` the tables and Markdown, ``flat`` CSV and JSON
lines, ``plots`` and ``terminal`` the figures, ``page`` the HTML. Nothing here knows a screen.
"""
