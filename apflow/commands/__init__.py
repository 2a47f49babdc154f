"""Groups of commands of the ``apflow`` command line, a module each."""
