"""The command line: the only part of specx that knows a screen."""
