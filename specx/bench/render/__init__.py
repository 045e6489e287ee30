"""Showing a bench: everything here is made from one ``Bench``, and knows no screen."""
