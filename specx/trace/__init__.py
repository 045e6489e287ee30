"""A run recorded step by step: ``specx.trace/1``, one JSON object a line.

``records`` has the lines, ``write`` makes them while a request runs, ``read`` checks a file,
``page`` makes a page for a browser of it, ``map`` maps the document. None knows a screen.
"""
