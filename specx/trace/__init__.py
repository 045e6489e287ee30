"""A run as JSON, whole (``specx.result/1``) or step by step (``specx.trace/1``, an object a line).

``result`` has the first. Of the second ``records`` has the lines, ``write`` makes them while a
request runs, ``read`` checks a file, ``page`` makes a page for a browser of it, ``map`` maps the
document. None knows a screen.
"""
